"""A decoder's tokens cost no look of the host at the device beside those of `generate` itself."""

from collections import Counter
from typing import get_args

import pytest
import torch
from methods import TOKEN_METHODS
from models import PROMPTS
from sync_counter import Looks

from sightline import VDD, Additive, Contrastive, Gated, NoisyImage, Recipe, State
from sightline.logits.grounding import Grounded, Truncation

FEW, MORE = 3, 6
SAMPLING = dict(do_sample=True, top_k=20, top_p=0.9, temperature=0.7, repetition_penalty=1.2)
MODES = {
    "greedy": {},
    "2 samples": dict(SAMPLING, num_return_sequences=2),
    "2 beams": dict(SAMPLING, num_beams=2),
    "static cache": dict(cache_implementation="static", disable_compile=True),
}
DECODERS = {
    **{name: method.strong for name, method in TOKEN_METHODS.items() if not method.cuts_cache},
    "additive": Recipe(contrasts=(NoisyImage(),), rule=Additive(1.0, 0.1)),
}
mode = pytest.mark.parametrize("asked", MODES.values(), ids=MODES)
EVERY = MORE - FEW  # looks in so many tokens: one for each


def looks(model, inputs, decoder, **asked):
    """By name, looks in the tokens from the 4th to the 6th; the prompt's are left out."""
    counted = []
    for tokens in (FEW, MORE):
        torch.manual_seed(1)
        with Looks() as counts:
            out = model.generate(
                **inputs,
                custom_generate=decoder,
                max_new_tokens=tokens,
                eos_token_id=-1,
                **asked,
            )
        assert out.shape[1] == inputs["input_ids"].shape[1] + tokens
        counted.append(counts)
    few, more = counted
    more.subtract(few)
    return Counter({name: count for name, count in more.items() if count})


@mode
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_no_look_beside_those_of_generate(family, decoder, asked):
    """Of a padded batch, as branches of different lengths are one: transformers looks at a mask."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    assert looks(model, inputs, decoder, **asked) == looks(model, inputs, None, **asked)


def test_one_row_is_padded_by_the_branches_alone(llava):
    """(5.23.) For each token transformers asks a mask whether it hides anything, where one is: as
    many looks as in a padded batch. Branches of one length have none, nor has a static cache.
    """
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS[:1])
    plain = looks(model, inputs, None)
    assert looks(model, inputs, TOKEN_METHODS["vcd"].strong) == plain
    assert looks(model, inputs, TOKEN_METHODS["vdd"].strong) == plain + Counter(
        _local_scalar_dense=EVERY
    )
    static = MODES["static cache"]
    assert looks(model, inputs, TOKEN_METHODS["vdd"].strong, **static) == looks(
        model, inputs, None, **static
    )


BANS = {
    "min_new_tokens": dict(min_new_tokens=FEW),
    "begin_suppress_tokens": dict(begin_suppress_tokens=[5]),
    "suppress_tokens": dict(suppress_tokens=[5]),
    "bad_words_ids": dict(bad_words_ids=[[5]]),
}


@pytest.mark.parametrize("asked", BANS.values(), ids=BANS)
def test_a_ban_costs_no_look(llava, asked):
    """The cut comes after it, so that no row can be left without a token."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    plain = looks(model, inputs, None, **asked)
    assert looks(model, inputs, VDD(1.5, 0.05), **asked) == plain


def test_a_gate_costs_one_look(llava):
    """What is done next depends on it. Where it opens its amateurs are a padded batch too."""
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    plain = looks(model, inputs, None)
    gated = looks(model, inputs, Gated(VDD(1.5, 0.05)))
    extra = gated - plain
    assert set(extra) == {"_local_scalar_dense"}
    assert EVERY <= extra["_local_scalar_dense"] <= 2 * EVERY


def test_looks_are_counted():
    """By hand, so that a count of none means none."""
    values = torch.tensor([0.0, 1.0, 2.0])
    with Looks() as counts:
        assert values.any()
        float(values[1])
        values[values > 0]
        values[values > 0] = 1.0
        values.nonzero()
        values.tolist()
        torch.tensor([3.0])
        values.repeat_interleave(torch.tensor([1, 0, 2]))
        values.repeat_interleave(2)
        torch.equal(values, values)
        values[torch.tensor([0])]
    assert counts == {
        "_local_scalar_dense": 2,
        "index by a mask": 2,
        "nonzero": 1,
        "tolist": 1,
        "tensor": 3,
        "repeats in a tensor": 1,
        "equal": 1,
    }


def test_rules_that_preparations_bring_do_not_look():
    logits, support = torch.randn(2, 50), torch.randn(2, 50)
    state = State(notes={"support": support})
    with Looks() as counts:
        for truncation in get_args(Truncation):
            Grounded(truncation=truncation)([logits], state)
        Contrastive()([logits, support], state)
    assert not counts
