"""Prompts of a batch: what is equal in it is read once, and nothing else is changed by that."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import BOS, IMAGE, PAD, UNK, llava_inputs
from models import llava as build_llava
from neutral_parts import NeutralWeights
from transformers import LlavaForConditionalGeneration

from sightline import M3ID, PAI, VCD, VDD, ConfidenceGate, Gated, PromptCached, Recipe
from sightline.engine.branch import Branch, Prefix
from sightline.engine.inputs import is_about_images
from sightline.engine.prefill import can_share
from sightline.engine.prompt_edits import continued

SAME, OTHER, SHORTER = (
    [BOS, 8, 9, IMAGE, 20, 21, 22],
    [BOS, 8, 9, IMAGE, 20, 21, 23],
    [BOS, IMAGE, 12, 13],
)
EXACT = dict(atol=1e-4, rtol=1e-4)  # float32: other numbers of rows round otherwise


def generate(model, inputs, decoder, **kwargs):
    torch.manual_seed(1)
    asked = dict(
        output_logits=True, return_dict_in_generate=True, max_new_tokens=6, eos_token_id=-1
    )
    return model.generate(**inputs, custom_generate=decoder, **asked, **kwargs)


def with_images(make_inputs, rows):
    """The same text asks of an image of its own in each row."""
    inputs = make_inputs(rows)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(inputs["pixel_values"].shape, generator=generator)
    return inputs | {"pixel_values": pixels}


def sizes_read(model, inputs, decoder, **kwargs):
    """Rows and tokens of each prompt that the text model reads."""
    sizes = []

    def remember(module, args, kwargs):
        sizes.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    hook = model.get_decoder().register_forward_pre_hook(remember, with_kwargs=True)
    try:
        generate(model, inputs, decoder, **kwargs)
    finally:
        hook.remove()
    return [(rows, tokens) for rows, tokens in sizes if tokens > 1]


# By decoder, the length of each amateur's prompt that is read once for equal rows.
BLIND = {
    "vdd": (VDD(1.5, 0.05), [6]),
    "m3id": (M3ID(rate=0.5, beta=0.05), [6]),
    "pai": (PAI(alpha=1.5, gamma=2.0, layers=(1, 3)), [6]),
    "vdd both": (VDD(1.5, 0.05, variant="both", unk_token_id=UNK), [6, 7]),
    "a gate that is always open": (Gated(VDD(1.5, 0.05), ConfidenceGate(1.0)), [6]),
}
COPIES = {"greedy": {}, "beams": dict(num_beams=2), "samples": dict(num_return_sequences=2)}
blind = pytest.mark.parametrize(("decoder", "lengths"), BLIND.values(), ids=BLIND)


def asked_for(copies):
    return {**copies, "do_sample": True} if "num_return_sequences" in copies else copies


@blind
@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_text_that_several_rows_share_is_read_once(family, decoder, lengths, copies):
    """Four rows with an image each; without it two of three texts are left, the longest of 6."""
    _, model, make_inputs = family
    rows = [SAME, SHORTER, SAME, OTHER]
    inputs = with_images(make_inputs, rows)
    whole = inputs["input_ids"].shape[1]
    read = sizes_read(model, inputs, decoder, **asked_for(copies))
    assert read == [(4, whole), *[(3, length) for length in lengths]]
    read = sizes_read(model, with_images(make_inputs, [SAME] * 3), decoder, **asked_for(copies))
    assert read == [(3, whole), *[(1, length) for length in lengths]]


@blind
def test_every_row_is_answered_as_alone(family, decoder, lengths):
    """Each has its own image, so expert and answer differ where the amateur's prompt does not."""
    _, model, make_inputs = family
    rows = [SAME, SHORTER, SAME, OTHER, SAME]
    inputs = with_images(make_inputs, rows)
    together = generate(model, inputs, decoder)
    patches = len(inputs["pixel_values"]) // len(rows)
    answered = set()
    for row, tokens in enumerate(rows):
        alone = make_inputs([tokens])
        alone["pixel_values"] = inputs["pixel_values"][row * patches : (row + 1) * patches]
        expected = generate(model, alone, decoder)
        answer = expected.sequences[0, alone["input_ids"].shape[1] :]
        assert torch.equal(together.sequences[row, inputs["input_ids"].shape[1] :], answer)
        for ours, theirs in zip(together.branch_logits, expected.branch_logits, strict=True):
            torch.testing.assert_close(ours[:, row], theirs[:, 0], **EXACT)
        if tokens is SAME:
            answered.add(tuple(answer.tolist()))
    assert len(answered) > 1, "images matter"


@pytest.mark.parametrize("asked", [dict(num_beams=3), dict(cache_implementation="static")])
def test_copies_and_caches_hold_what_was_read_once(family, asked):
    _, model, make_inputs = family
    inputs = with_images(make_inputs, [SAME, SHORTER, SAME])
    together = generate(model, inputs, VDD(1.5, 0.05), **asked).sequences
    patches = len(inputs["pixel_values"]) // 3
    for row, tokens in enumerate([SAME, SHORTER, SAME]):
        alone = make_inputs([tokens])
        alone["pixel_values"] = inputs["pixel_values"][row * patches : (row + 1) * patches]
        expected = generate(model, alone, VDD(1.5, 0.05), **asked).sequences
        assert torch.equal(together[row, -6:], expected[0, -6:])


def test_images_tell_rows_apart(family):
    _, model, make_inputs = family
    inputs = with_images(make_inputs, [SAME, SAME])
    whole = inputs["input_ids"].shape[1]
    assert sizes_read(model, inputs, VCD(1.5, 0.05, 900)) == [(2, whole)] * 2


def test_hidden_states_and_edits_are_of_every_row(llava):
    """Text alone, the same in both rows: the expert is read once too, unless it is edited."""
    model, make_inputs = llava
    inputs = make_inputs([[BOS, 30, 31]] * 2)
    plain = generate(model, inputs, None, output_hidden_states=True)
    kept = Recipe(attention_edits=(NeutralWeights(),))
    cut = VDD(0, 0.05).recipe().simplified()
    for decoder, rows in ((kept, 2), (cut, 1)):
        assert sizes_read(model, inputs, decoder) == [(rows, 3)]
        out = generate(model, inputs, decoder, output_hidden_states=True)
        assert torch.equal(out.sequences, plain.sequences)
        for ours, theirs in zip(out.hidden_states[0], plain.hidden_states[0], strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


class Toned(LlavaForConditionalGeneration):
    """A keyword of its own, one value per row, changes what is read."""

    def forward(self, pixel_values=None, mm_encoder_outputs=None, tone=None, **kwargs):
        kwargs |= dict(pixel_values=pixel_values, mm_encoder_outputs=mm_encoder_outputs)
        outputs = super().forward(**kwargs)
        outputs.logits = outputs.logits * tone[:, None, None]
        return outputs


def test_a_keyword_of_each_row_tells_rows_apart():
    model = build_llava()
    model.__class__ = Toned
    inputs = with_images(llava_inputs, [SAME, SAME])
    tones = torch.tensor([1.0, -1.0])
    out = generate(model, inputs, VDD(1.5, 0.05), tone=tones)
    amateur = out.branch_logits[0][1]
    torch.testing.assert_close(amateur[0], -amateur[1], **EXACT)


class Tiled(LlavaForConditionalGeneration):
    """A keyword of its images, one value for each, changes what is read (Molmo2 has such a one)."""

    def forward(self, pixel_values=None, mm_encoder_outputs=None, image_num_crops=None, **kwargs):
        kwargs |= dict(pixel_values=pixel_values, mm_encoder_outputs=mm_encoder_outputs)
        outputs = super().forward(**kwargs)
        if image_num_crops is not None:
            outputs.logits = outputs.logits * image_num_crops.sum()
        return outputs


@pytest.mark.parametrize("rows", [[SAME], [SAME, SAME], [SAME, OTHER, SHORTER]], ids=len)
@pytest.mark.parametrize("asked", [{}, dict(num_beams=2)], ids=["greedy", "beams"])
def test_an_image_free_prompt_is_read_without_what_tells_of_images(rows, asked):
    model, plain = build_llava(), build_llava()
    model.__class__ = Tiled
    inputs = with_images(llava_inputs, rows)
    crops = torch.full((len(rows),), 2)
    ours = generate(model, inputs, VDD(1.5, 0.05), image_num_crops=crops, **asked)
    without = generate(plain, inputs, VDD(1.5, 0.05), **asked)
    (tiled, blind), (expert, amateur) = ours.branch_logits[0], without.branch_logits[0]
    torch.testing.assert_close(tiled, expert * 2 * len(rows), **EXACT)
    torch.testing.assert_close(blind, amateur, **EXACT)
    reusing = PromptCached(VDD(1.5, 0.05))
    read = [
        len(sizes_read(model, inputs, reusing, image_num_crops=crops, **asked)) for _ in range(2)
    ]
    assert read == [2, 1]


def test_keywords_that_tell_of_images_are_told_by_name_or_by_the_processor():
    tiler = SimpleNamespace(image_processor=SimpleNamespace(model_input_names=["tiles"]))
    for name in (
        "image_grid_thw",
        "image_num_crops",
        "image_sizes",
        "image_sizes_videos",
        "num_images",
        "pixel_counts",
        "pixel_attention_mask",
        "spatial_shapes",
        "video_compression_mask",
        "second_per_grid_ts",
    ):
        assert is_about_images(name)
    for name in ("tone", "tiles", "mm_token_type_ids", "logits_to_keep", "use_cache"):
        assert not is_about_images(name)
    assert is_about_images("tiles", tiler) and not is_about_images("tone", tiler)


def test_keys_are_shared_only_where_nothing_behind_is_part_of_an_image():
    """A type other than 0 says of a token that others see it as an image's, before it too."""
    model = build_llava()
    image = torch.tensor([[False, True, True, False, False]])
    for types, is_shared in (([0, 1, 1, 0, 0], True), ([0, 1, 1, 1, 0], False)):
        aligned = {"mm_token_type_ids": torch.tensor([types])}
        branch = branch_of([[5, 6, 6, 7, 8]], image_mask=image, aligned=aligned)
        assert can_share(branch, model) == is_shared
    marked = SimpleNamespace(visual_indicator_features=torch.ones(2, 4))
    branch = branch_of([[5, 6, 6, 7, 8]], image_mask=image, features={"image": marked})
    assert not can_share(branch, model)


def test_text_that_begins_as_before_keeps_what_runs_along_it():
    """The closing marker 7 keeps its type; new tokens have type 0, and all count on."""
    types = {"mm_token_type_ids": torch.tensor([[0, 1, 1, 1, 0, 0]])}
    branch = branch_of([[5, 6, 6, 7, 8, 9]], aligned=types)
    made = continued(branch, torch.tensor([0]), [3], [[7, 10, 11, 12]], None)
    assert made.input_ids.tolist() == [[5, 6, 6, 7, 10, 11, 12]]
    assert made.aligned["mm_token_type_ids"].tolist() == [[0, 1, 1, 1, 0, 0, 0]]
    assert made.position_ids.tolist() == [list(range(7))]


def branch_of(ids, **changes):
    ids = torch.tensor(ids)
    made = Branch(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        image_mask=torch.zeros_like(ids, dtype=torch.bool),
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),
    )
    return replace(made, **changes)


ROWS = [[5, 6], [5, 7], [5, 6], [5, 6]]
PLACES = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 2]])
TYPES = torch.tensor([[[0.0], [1.0]], [[0.0], [1.0]], [[0.0], [1.0]], [[0.0], [0.5]]])
KINDS = {
    "tokens": ({}, [0, 1, 0, 0]),
    "padding": (dict(attention_mask=torch.tensor([[1, 1], [1, 1], [0, 1], [1, 1]])), [0, 1, 2, 0]),
    "places": (dict(position_ids=PLACES), [0, 1, 0, 2]),
    "places in parts": (dict(position_ids=torch.stack([0 * PLACES, PLACES])), [0, 1, 0, 2]),
    "types": (dict(aligned={"types": TYPES}), [0, 1, 0, 2]),
    "images": (dict(features={"image": object()}), [0, 1, 2, 3]),
    "a prefix": (dict(prefix=Prefix(())), [0, 1, 2, 3]),
}


@pytest.mark.parametrize(("changes", "expected"), KINDS.values(), ids=KINDS)
def test_kinds_of_rows_by_hand(changes, expected):
    branch = branch_of(ROWS, **changes)
    one_of_each, kinds = branch.distinct(None)
    assert kinds.tolist() == expected
    firsts = [expected.index(kind) for kind in range(max(expected) + 1)]
    assert one_of_each.input_ids.tolist() == [ROWS[first] for first in firsts]
    assert torch.equal(one_of_each.position_ids, branch.position_ids[..., firsts, :])
