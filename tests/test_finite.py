"""Logits that are NaN or infinite: one clear error from whatever decodes. A ban is legitimate."""

import math

import pytest
import torch
from chat_models import Fixed, lab_vlm
from methods import TOKEN_METHODS
from models import FAMILIES, PROMPTS, UNK
from test_compiled import compiled

from sightline import (
    AGLA,
    CARVE,
    M3ID,
    MVP,
    PAI,
    VDD,
    VDGD,
    Gated,
    PostHocDebias,
    PromptCached,
    Recipe,
)
from sightline.logits.finite import FiniteRows, check_finite

BANNED = 9
MODES = {
    "greedy": {},
    "sampled": dict(do_sample=True),
    "returned sequences": dict(do_sample=True, num_return_sequences=2),
    "beams": dict(num_beams=2),
    "static cache": dict(cache_implementation="static", disable_compile=True),
}
DECODERS = {
    **{name: method.strong for name, method in TOKEN_METHODS.items()},
    "off": TOKEN_METHODS["vdd"].neutral,
    "nothing": Recipe(),
    "gated": Gated(VDD(1.5, 0.05)),
    "reusing": PromptCached(VDD(1.5, 0.05)),
}
UNCUT = {
    "vdd": VDD(1.5, 0.0),
    "vdd-both": VDD(1.5, 0.0, variant="both", unk_token_id=UNK),
    "pai": PAI(alpha=1.5, gamma=2.0, beta=0.0, layers=(1, 3)),
    "m3id": M3ID(rate=0.5, beta=0.0),
}
REFUSED = r"logits are not finite \(NaN, \+inf, or no finite value\)"


class Edited(torch.nn.Module):
    """A head whose logits `[rows, T, V]` are edited, in place, at every call."""

    def __init__(self, head, edit):
        super().__init__()
        self.head, self.edit, self.calls = head, edit, 0

    @property
    def weight(self):
        return self.head.weight

    def forward(self, hidden):
        logits = self.head(hidden).clone()
        self.calls += 1
        self.edit(logits, self.calls)
        return logits


def whole_row(value):
    def edit(logits, call):
        logits[0] = value

    return edit


def one_later(value):
    """One token of one row, once the prompts are read."""

    def edit(logits, call):
        if call > 3:
            logits[-1, :, BANNED] = value

    return edit


def ban(logits, call):
    logits[..., BANNED] = -math.inf


BROKEN = {
    "NaN": whole_row(math.nan),
    "+inf": whole_row(math.inf),
    "no finite value": whole_row(-math.inf),
    "one NaN": one_later(math.nan),
    "one +inf": one_later(math.inf),
}


def edited(edit, family="llava"):
    build, make_inputs = FAMILIES[family]
    model = build()
    model.lm_head = Edited(model.lm_head, edit)
    return model, make_inputs(PROMPTS)


def generate(model, inputs, decoder, **asked):
    asked = {"max_new_tokens": 5, "eos_token_id": 119, "min_new_tokens": 5, **asked}
    return model.generate(**inputs, custom_generate=decoder, **asked)


def test_rows_by_hand():
    """Which rows have a token to choose: by the definition, each alone."""
    inf, nan = math.inf, math.nan
    rows = {
        (0.0, 1.0): True,
        (0.0, -inf): True,
        (-inf, -inf): False,
        (inf, 0.0): False,
        (nan, 0.0): False,
        (-inf, nan): False,
        (inf, -inf): False,
    }
    for row, usable in rows.items():
        given = torch.tensor([[1.0, 2.0], row])
        finite = FiniteRows()
        left = finite(None, given)
        assert torch.equal(left[0], given[0])
        if usable:
            finite.check()
            assert torch.equal(left, given)
            continue
        assert left[1].tolist() == [0.0, 0.0]
        finite(None, torch.ones(2, 2))  # a later step does not make it good
        with pytest.raises(ValueError, match=REFUSED):
            finite.check()
        with pytest.raises(ValueError, match=REFUSED):
            check_finite(given)
    FiniteRows().check()  # nothing was seen


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_broken_logits_are_refused(decoder, edit):
    for name, asked in MODES.items():
        if edit is not BROKEN["one NaN"] and name not in ("greedy", "sampled"):
            continue  # what a mode does to a row does not depend on what is wrong with it
        if name == "static cache" and decoder is TOKEN_METHODS["vasparse"].strong:
            continue  # it takes keys out of the cache, and refuses such a one
        model, inputs = edited(edit)
        with pytest.raises(ValueError, match=REFUSED):
            generate(model, inputs, decoder, **asked)


def test_broken_logits_of_the_other_branches_are_refused():
    """The expert's row is the first of its own prefill, so it stays whole."""

    def edit(logits, call):
        if call > 1 and len(logits) > 1:
            logits[len(logits) // 2 :] = math.nan  # amateurs' rows follow the expert's

    for decoder in (VDD(1.5, 0.05), VDD(1.5, 0.0), Gated(VDD(1.5, 0.0))):
        model, inputs = edited(edit)
        with pytest.raises(ValueError, match=REFUSED):
            generate(model, inputs, decoder)


def test_broken_logits_of_a_compiled_forward_are_refused():
    torch._dynamo.reset()
    model, inputs = edited(lambda logits, call: None)
    model.lm_head = model.lm_head.head
    model.lm_head.weight.data[BANNED] = math.nan
    with pytest.raises(ValueError, match=REFUSED):
        compiled(model, inputs, TOKEN_METHODS["vdd"].strong)
    torch._dynamo.reset()


@pytest.mark.parametrize("decoder", [*DECODERS.values(), *UNCUT.values()])
def test_a_single_ban_is_legitimate(decoder):
    """Also where no token is cut: what a model bans is not said, and all the rest is as ever."""
    for name in ("greedy", "sampled"):
        asked = MODES[name]
        torch.manual_seed(3)
        model, inputs = edited(ban)
        found = generate(model, inputs, decoder, **asked)
        answers = found[:, inputs["input_ids"].shape[1] :]
        assert not (answers == BANNED).any()
        model, inputs = edited(lambda logits, call: None)
        torch.manual_seed(3)
        suppressed = generate(model, inputs, decoder, suppress_tokens=[BANNED], **asked)
        if name == "greedy" and decoder in UNCUT.values():
            assert torch.equal(found, suppressed)


@pytest.fixture(scope="module")
def vlm():
    return lab_vlm()


@pytest.mark.parametrize("weights", ["lm_head", "vision_tower", "layers.1.mlp"])
def test_broken_weights_are_refused_by_all_that_ask(vlm, weights):
    """Descriptions, views, captions and closed sets are read from the same logits."""
    processor = vlm.processor
    decoders = (
        VDGD(processor=processor, tokens=4),
        CARVE(processor=processor),
        MVP(processor=processor, caption_tokens=4, tokens=4),
        AGLA(processor=processor, matcher=Fixed()),
        PostHocDebias(processor=processor),
        PostHocDebias(processor=processor, labels=("yes it is", "no it is not")),
    )
    inputs = vlm.asked(["Is there a dog in the image?", "Is there a cat in the image?"])
    chosen = [p for name, p in vlm.model.named_parameters() if weights in name]
    kept = [parameter.data.clone() for parameter in chosen]
    for parameter in chosen:
        parameter.data.fill_(math.nan)
    try:
        for decoder in decoders:
            looks = getattr(decoder, "needs_images", False)
            looked_at = {"images": list(vlm.images[:2])} if looks else {}
            with pytest.raises(ValueError, match=REFUSED):
                vlm.model.generate(**inputs, **looked_at, custom_generate=decoder, max_new_tokens=3)
    finally:
        for parameter, values in zip(chosen, kept, strict=True):
            parameter.data.copy_(values)
