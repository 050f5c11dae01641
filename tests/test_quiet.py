"""Decoders add nothing to what `generate` warns of, in warnings and in transformers' log."""

import logging
import warnings

import pytest
from chat_models import Fixed

from sightline import AGLA, CARVE, ICD, MVP, VDGD, Gated, PostHocDebias, PrefixOnly, PromptCached
from sightline.decoders import DECODERS

QUESTIONS = ["Describe the image.", "Is there an orange or a vase?"]
SMALL = {
    "vdgd": lambda p: VDGD(processor=p, tokens=4),
    "mvp": lambda p: MVP(processor=p, k=2, tokens=4, caption_tokens=4),
    "carve": lambda p: CARVE(processor=p, tokens=3),
    "agla": lambda p: AGLA(Fixed(), processor=p),
    "icd": lambda p: ICD(processor=p),
}
BUILDS = {
    **{name: lambda p, kind=kind: kind() for name, kind in DECODERS.items() if name not in SMALL},
    **SMALL,
    "vdgd official": lambda p: VDGD(processor=p, tokens=4, layout="official"),
    "vdgd continue": lambda p: VDGD(processor=p, tokens=4, layout="continue"),
    "prefix only": lambda p: PrefixOnly(processor=p, tokens=4),
    "agla own": lambda p: AGLA(processor=p),
    "carve refined": lambda p: CARVE(processor=p, tokens=3, final="refined"),
    "posthoc": lambda p: PostHocDebias(processor=p),
    "gated": lambda p: Gated(DECODERS["vdd"]()),
    "reusing": lambda p: PromptCached(DECODERS["vdd"]()),
}
EVERYTHING = dict(
    return_dict_in_generate=True,
    output_scores=True,
    output_logits=True,
    output_hidden_states=True,
)  # output_attentions is refused without eager attention
CLOSED = {"mvp", "posthoc"}
MODES = {
    "greedy": {},
    "everything asked for": EVERYTHING,
    "sampling": dict(do_sample=True, temperature=0.7, top_p=0.9, top_k=20),
    "beams": dict(num_beams=2, num_return_sequences=2, length_penalty=0.9, early_stopping=True),
    "scores of beams": dict(num_beams=2, **EVERYTHING),
    "bounds": dict(min_new_tokens=2, repetition_penalty=1.1, max_time=60.0),
}


class Heard(logging.Handler):
    """`with Heard() as said:` lists warnings and what transformers logs, as text."""

    def __enter__(self):
        self.said = []
        self.logger = logging.getLogger("transformers")
        self.before, self.caught = self.logger.level, warnings.catch_warnings(record=True)
        self.warned = self.caught.__enter__()
        warnings.simplefilter("always")
        self.logger.setLevel(logging.WARNING)
        self.logger.addHandler(self)
        return self.said

    def emit(self, record):
        self.said.append(record.getMessage())

    def __exit__(self, *error):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)
        self.said += [str(warning.message) for warning in self.warned]
        self.caught.__exit__(*error)


@pytest.fixture
def vlm(qwen_vlm):
    return qwen_vlm


@pytest.fixture(autouse=True)
def every_time(monkeypatch):
    """What transformers says once in a process is said each time."""
    monkeypatch.setattr("logging.Logger.warning_once", said_always, raising=False)


def said_always(logger, *args, **kwargs):
    logger.warning(*args, **kwargs)


def heard(vlm, decoder, asked):
    images = list(vlm.images[:2])
    given = {"images": images} if getattr(decoder, "needs_images", False) else {}
    inputs = vlm.asked(QUESTIONS, images)
    with Heard() as said:
        vlm.model.generate(**inputs, **given, **asked, custom_generate=decoder, max_new_tokens=4)
    return said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILDS)
def test_a_decoder_says_nothing_that_generate_does_not(vlm, name, mode):
    asked = MODES[mode]
    if name in CLOSED and ("num_beams" in asked or "output_scores" in asked):
        pytest.skip("a closed set has one answer and no outputs per token, and says so")
    assert heard(vlm, None, asked) == []
    assert heard(vlm, BUILDS[name](vlm.processor), asked) == []


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_probabilities_say_nothing(vlm, name):
    decoder, images = BUILDS[name](vlm.processor), list(vlm.images[:2])
    given = {"images": images} if name == "mvp" else {}
    with Heard() as said:
        decoder.probabilities(vlm.model, **vlm.asked(QUESTIONS, images), **given)
    assert said == []
