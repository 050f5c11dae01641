"""Image-free prompts that are kept between calls: not read again, and the same answers."""

import gc
from dataclasses import replace

import pytest
import torch
from models import BOS, FAMILIES, IMAGE, PROMPTS, lfm2, lfm2_inputs
from neutral_parts import NeutralWeights

from sightline import (
    M3ID,
    PAI,
    VCD,
    VDD,
    ConfidenceGate,
    Contrastive,
    Gated,
    NoImage,
    PromptCached,
    Recipe,
)
from sightline.engine.prompt_edits import without_images

QUESTION, OTHER, SHORT = PROMPTS[0], [BOS, 8, 9, IMAGE, 20, 21, 23], PROMPTS[1]
DECODERS = {
    "vdd": VDD(1.5, 0.05),
    "vdd both": VDD(1.5, 0.05, variant="both", unk_token_id=7),
    "m3id": M3ID(rate=0.5, beta=0.05),
    "pai": PAI(alpha=1.5, gamma=2.0, layers=(1, 3)),
    "a gate": Gated(VDD(1.5, 0.05), ConfidenceGate(1.0)),
}
MODES = {
    "greedy": {},
    "2 beams": dict(num_beams=2),
    "2 samples": dict(do_sample=True, num_return_sequences=2),
    "static cache": dict(cache_implementation="static"),
}
EXACT = dict(atol=1e-4, rtol=1e-4)  # float32: other numbers of rows round otherwise


def asked(model, make_inputs, rows, seed=0):
    """Inputs of these rows, with images that depend on a seed."""
    inputs = make_inputs(rows)
    generator = torch.Generator().manual_seed(seed)
    return inputs | {"pixel_values": torch.randn(inputs["pixel_values"].shape, generator=generator)}


def generate(model, inputs, decoder, **kwargs):
    torch.manual_seed(1)
    return model.generate(
        **inputs,
        custom_generate=decoder,
        max_new_tokens=6,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )


def rows_read(model, inputs, decoder, **kwargs):
    """Of each prompt that the text model reads, how many rows."""
    rows = []

    def remember(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] > 1:
            rows.append(len(kwargs["inputs_embeds"]))

    hook = model.get_decoder().register_forward_pre_hook(remember, with_kwargs=True)
    try:
        generate(model, inputs, decoder, **kwargs)
    finally:
        hook.remove()
    return rows


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_same_answers_as_without(family, decoder, mode):
    """Every call has other images; the second knows one of two texts, the third both."""
    _, model, make_inputs = family
    reusing = PromptCached(decoder)
    for seed, rows in enumerate([[QUESTION, SHORT], [OTHER, SHORT, QUESTION], [SHORT, OTHER]]):
        inputs = asked(model, make_inputs, rows, seed)
        ours, plain = (generate(model, inputs, d, **mode) for d in (reusing, decoder))
        assert torch.equal(ours.sequences, plain.sequences)
        for known, read in zip(ours.branch_logits, plain.branch_logits, strict=True):
            torch.testing.assert_close(known, read, **EXACT)


def test_known_texts_are_not_read_again(family):
    """The expert's rows, then those of texts that are new. Padding is part of a text."""
    _, model, make_inputs = family
    reusing = PromptCached(DECODERS["vdd"])
    calls = [
        ([QUESTION], [1, 1]),
        ([QUESTION], [1]),
        ([QUESTION, QUESTION], [2]),
        ([QUESTION, SHORT, OTHER], [3, 2]),
        ([OTHER, SHORT], [2]),
        ([SHORT], [1, 1]),
    ]
    for seed, (rows, read) in enumerate(calls):
        inputs = asked(model, make_inputs, rows, seed)
        assert rows_read(model, inputs, reusing) == read
    inputs = asked(model, make_inputs, [QUESTION])
    for name, branches in (("vdd both", 3), ("a gate", 2), ("pai", 2)):
        reusing = PromptCached(DECODERS[name])
        assert rows_read(model, inputs, reusing) == [1] * branches
        assert rows_read(model, inputs, reusing) == [1]


def test_an_edited_amateur_is_read_every_time(llava):
    """Its keys are not those of its text alone."""
    model, make_inputs = llava

    def edited(expert, model):
        blind = without_images(expert, model)
        return replace(blind, attention_edits=(NeutralWeights(),))

    recipe = Recipe(contrasts=(NoImage(), edited), rule=Contrastive(1.5, 0.05))
    reusing, inputs = PromptCached(recipe), asked(model, make_inputs, [QUESTION])
    assert rows_read(model, inputs, reusing) == [1, 1, 1]
    assert rows_read(model, inputs, reusing) == [1, 1]


def test_the_oldest_text_is_forgotten(llava):
    model, make_inputs = llava
    reusing = PromptCached(DECODERS["vdd"], capacity=2)
    inputs = {name: asked(model, make_inputs, [row]) for name, row in ROWS.items()}
    read = [len(rows_read(model, inputs[name], reusing)) == 2 for name in "abacab"]
    assert read == [True, True, False, True, True, True]
    # more in one call than are kept
    inputs = asked(model, make_inputs, list(ROWS.values()))
    plain = generate(model, inputs, DECODERS["vdd"])
    assert torch.equal(generate(model, inputs, reusing).sequences, plain.sequences)


ROWS = {"a": QUESTION, "b": OTHER, "c": [BOS, 8, 9, IMAGE, 20, 21, 24]}


def test_models_and_dtypes_are_kept_apart():
    build, make_inputs = FAMILIES["llava"]
    reusing, first, second = PromptCached(DECODERS["vdd"]), build(), build()
    with torch.no_grad():
        second.lm_head.weight.mul_(-1)
    inputs = asked(first, make_inputs, [QUESTION])
    for model in (first, second):
        plain = generate(model, inputs, DECODERS["vdd"])
        assert torch.equal(generate(model, inputs, reusing).sequences, plain.sequences)
    assert rows_read(first.to(torch.bfloat16), inputs, reusing) == [1, 1]
    known = reusing.recipe().prompt_cache.by_owner
    assert len(known) == 2 and len(known[first]) == 2
    del model, second, plain
    gc.collect()
    assert len(known) == 1


def test_what_is_kept_is_the_decoders_own(llava):
    """Two decoders that reuse know nothing of each other, and nothing is changed in the first."""
    model, make_inputs = llava
    one, other = PromptCached(DECODERS["vdd"]), PromptCached(DECODERS["vdd"])
    inputs = asked(model, make_inputs, [QUESTION])
    assert rows_read(model, inputs, one) == rows_read(model, inputs, other) == [1, 1]
    assert rows_read(model, inputs, DECODERS["vdd"]) == [1, 1]
    assert (one.recipe() + Recipe()).prompt_cache is one.recipe().prompt_cache
    assert (Recipe() + one.recipe()).prompt_cache is one.recipe().prompt_cache


def test_bytes_are_those_of_the_docstring(llava):
    """Keys and values of 3 layers x 2 heads x 8 numbers for each of 6 tokens; logits beside."""
    model, make_inputs = llava
    reusing = PromptCached(DECODERS["vdd"])
    generate(model, asked(model, make_inputs, [QUESTION, OTHER]), reusing)
    kept = reusing.recipe().prompt_cache.by_owner[model].values()
    assert len(kept) == 2
    for logits, *layers in kept:
        assert sum(x.numel() for x in layers) == 2 * 3 * 2 * 8 * 6 and logits.shape == (1, 1, 120)
        assert all(x.untyped_storage().nbytes() == 4 * x.numel() for x in (logits, *layers))


def test_what_cannot_be_reused_is_refused(llava):
    model, make_inputs = llava
    inputs = asked(model, make_inputs, [QUESTION])
    with pytest.raises(ValueError, match="every branch of this decoder sees one"):
        generate(model, inputs, PromptCached(VCD()))
    with pytest.raises(ValueError, match="keep more than keys and values"):
        generate(lfm2(), lfm2_inputs([QUESTION]), PromptCached(VDD()))
    for capacity in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="capacity must be a whole number from 1 to"):
            PromptCached(VDD(), capacity=capacity)


def test_a_neutral_decoder_has_nothing_to_reuse(llava):
    model, make_inputs = llava
    inputs = asked(model, make_inputs, [QUESTION])
    neutral = PromptCached(VDD(alpha=0, beta=0))
    plain = generate(model, inputs, None)
    assert torch.equal(generate(model, inputs, neutral).sequences, plain.sequences)
