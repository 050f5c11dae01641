"""Decoders as JSON and back: nothing is lost, and nothing else is read."""

import json
from dataclasses import dataclass

import pytest
from chat_models import CHAT_MODELS, Fixed

from sightline import (
    AGLA,
    PAI,
    VAF,
    VCD,
    VDD,
    ConfidenceGate,
    Contrastive,
    Decoder,
    EntropyGate,
    Gated,
    NoisyImage,
    PostHocDebias,
    PromptCached,
    Recipe,
    SelfMatcher,
)
from sightline.decoders import DECODERS
from sightline.setting_text import presets
from sightline.specs import parse_spec

NAMES = [*DECODERS, *(f"{d}.{p}" for d, kind in DECODERS.items() for p in presets(kind))]
MADE = {
    **{name: lambda words, name=name: parse_spec(name).build(words) for name in NAMES},
    "posthoc": lambda words: PostHocDebias(processor=words, labels=["a", "b"]),
    "processor": lambda words: VDD(variant="both", processor=words),
    "matcher": lambda words: AGLA(SelfMatcher(masked=None, layers=[1, 3]), processor=words),
    "sum": lambda words: VDD(processor=words) + VAF(0.3, layers=(1, 3)),
    "gated": lambda words: Gated(VCD(seed=2**40), EntropyGate(0.1)),
    "cached": lambda words: PromptCached(Gated(PAI(), ConfidenceGate(0.5)), 3),
    "recipe": lambda words: Recipe((), (NoisyImage(3, 1),), Contrastive(1 / 3, 0.1)),
}


@pytest.fixture(scope="module")
def processor():
    return CHAT_MODELS["lab"]().processor


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_was_written_as_json_is_made_again(processor, make):
    decoder = make(processor)
    text = json.dumps(decoder.to_dict(), allow_nan=False)
    again = Decoder.from_dict(json.loads(text), processor=processor)
    assert again == decoder and type(again) is type(decoder)
    assert again.to_dict() == decoder.to_dict() == json.loads(text)


def test_every_setting_is_written_and_no_processor(processor):
    assert VDD(2, processor=processor, markers=(3, 4)).to_dict() == {
        "class": "VDD",
        "alpha": 2,
        "beta": 0.1,
        "variant": "none",
        "unk_token_id": None,
        "markers": [3, 4],
    }
    assert Gated(VAF()).to_dict()["gate"] == {"class": "PlausibilityGate"}


def test_settings_that_are_missing_keep_their_defaults():
    assert Decoder.from_dict({"class": "VCD", "alpha": 2}) == VCD(alpha=2)


def test_a_class_makes_its_own_kind_alone():
    class Mine(VDD):
        pass

    assert VDD.from_dict(VDD(2).to_dict()) == VDD(2)
    assert type(Mine.from_dict(Mine(2).to_dict())) is Mine
    with pytest.raises(ValueError, match="a VDD was wanted, got a PAI"):
        VDD.from_dict(PAI().to_dict())
    with pytest.raises(ValueError, match="a decoder was wanted, got a NoImage"):
        Decoder.from_dict({"class": "NoImage"})


WRONG = {
    "no mapping": ([], r"a decoder is written as .* got \[\]"),
    "no class": ({"alpha": 1}, "the name of its class and its settings, got"),
    "unknown class": ({"class": "VDX"}, r"called 'VDX' \(did you mean VDD\?\)"),
    "no name": ({"class": ["VDD"]}, "no decoder or part is called"),
    "no decoder": ({"class": "Branch"}, "no decoder or part is called 'Branch'"),
    "abstract": ({"class": "Matcher"}, "no decoder or part is called 'Matcher'"),
    "function": ({"class": "answer"}, "no decoder or part is called 'answer'"),
    "unknown setting": ({"class": "VDD", "alhpa": 1}, r"of VDD is called 'alhpa' .*mean alpha"),
    "odd setting": ({"class": "VDD", 3: 1}, "no setting of VDD is called 3"),
    "memory": ({"class": "PromptCached", "_prompt_cache": None}, "is called '_prompt_cache'"),
    "processor": ({"class": "VDD", "processor": None}, "no setting of VDD is called 'processor'"),
    "value": ({"class": "VDD", "beta": 2}, r"beta must be in \[0, 1\], got 2"),
    "type": ({"class": "VDD", "beta": "much"}, "beta must be .* got 'much'"),
    "part for a value": ({"class": "VDD", "beta": {"class": "VDD"}}, "beta must be .* got VDD"),
    "needed": ({"class": "Gated"}, "Gated needs decoder"),
    "other part": ({"class": "Gated", "decoder": {"class": "NoImage"}}, "must be .*, got NoImage"),
    "within": ({"class": "Combined", "decoders": [{"class": "X"}]}, "no decoder or part is called"),
    "two rules": (
        {"class": "Combined", "decoders": [{"class": "VDD"}, {"class": "PAI"}]},
        "two rules",
    ),
    "no processor": ({"class": "ICD"}, "processor="),
}


@pytest.mark.parametrize(("values", "match"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(values, match):
    with pytest.raises(ValueError, match=match):
        Decoder.from_dict(values)


def test_what_is_no_value_is_refused_in_words(processor):
    with pytest.raises(ValueError, match=r"Recipe\.preparations\[0\] is <function"):
        Recipe((lambda expert, model: expert,)).to_dict()
    with pytest.raises(ValueError, match=r"Recipe\.prompt_cache is .*PromptCache"):
        PromptCached(VDD()).recipe().to_dict()
    with pytest.raises(ValueError, match=r"Asking\.model is <object"):
        AGLA(Asking(model=object()), processor=processor).to_dict()


@dataclass(frozen=True)
class Asking(Fixed):
    model: object = None
