"""What some families do otherwise than most: where their encoders put images, what their caches
keep, how they count positions, lay out pixels, attend, and make logits of states."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers
from models import IMAGE, PROMPTS, VIDEO, VISION_END, VISION_START
from neutral_parts import ExpertOnly
from packaging.version import Version
from tiny_families import Family, Tiny, build, families
from torch import tensor
from transformers import DynamicCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sightline import SID, VAF, VDD, Branch, DoLa, NoImage, NoisyImage, Recipe, Rule, VASparse
from sightline.attention.edits import ImageGain, ImageScale, LeastAttended
from sightline.attention.eviction import WeakAnswerKeys
from sightline.attention.hook import KEYWORD, AttentionPlan, BranchAttention, recalibrated
from sightline.attention.recorder import AttentionRecorder
from sightline.attention.reference import attend
from sightline.decoders.damro.outliers import OutlierImage
from sightline.engine.early_exit import last_norm
from sightline.engine.kv_cache import scratch_cache
from sightline.logits.rules import Needs
from sightline.vision.features import alternating, image_lengths, select_images

SUPPRESSED = dict(suppress_tokens=[IMAGE, VIDEO, VISION_START, VISION_END])
CLOSE = dict(atol=1e-3, rtol=1e-3)  # float32, N x B rows and a cache against one row without
PRESENT = Recipe(contrasts=(NoImage(),), rule=ExpertOnly())


def tiny(name, **changes):
    family = families().get(name, Family(reason="this release of transformers does not have it"))
    is_older = Version(transformers.__version__) < Version("5.23")
    if is_older and family.why_untested:
        pytest.skip(f"{name}: {family.why_untested}")
    made = {**family.changes, **{path.replace("__", "."): v for path, v in changes.items()}}
    return Tiny(name, family, build(name, made, family.seed))


def answer(made, rows=PROMPTS, **asked):
    given = dict(max_new_tokens=8, do_sample=False, **SUPPRESSED)
    return made.model.generate(**made.inputs(rows), **{**given, **asked})


@torch.no_grad()
def last_logits(made, row, answered=()):
    """`[V]` of one forward over one row, without padding or a cache."""
    inputs = made.inputs([row])
    count = len(answered)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            more = answered if name == "input_ids" else [int(name == "attention_mask")] * count
            inputs[name] = torch.cat([inputs[name], tensor([more]).long()], dim=1)
    return made.model(**inputs).logits[0, -1].float()


# Where encoders put images


@pytest.mark.parametrize("name", ["llama4", "fuyu", "granite4_vision"])
def test_images_outside_pooler_output(name):
    made = tiny(name)
    told = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=1)
    got = answer(made, custom_generate=VDD(alpha=1.0), suppress_tokens=None, **told)
    for i, row in enumerate(PROMPTS):
        image_free = [token for token in row if token != IMAGE]
        for logits, whole in zip(got.branch_logits[0][:, i], [row, image_free], strict=True):
            torch.testing.assert_close(logits, last_logits(made, whole), **CLOSE)


def test_images_by_layer_are_chosen_row_by_row():
    made = tiny("granite4_vision")
    beams = dict(num_beams=2)
    assert torch.equal(answer(made, custom_generate=PRESENT, **beams), answer(made, **beams))


@pytest.mark.parametrize("name", ["llama4", "fuyu"])
def test_beams_where_generate_does_not_repeat_the_images(name):
    """Of two equal beams the best is the greedy answer: the end of sequence is barred."""
    made = tiny(name)
    asked = dict(max_new_tokens=1, min_new_tokens=1)
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        answer(made, num_beams=3, **asked)
    one = answer(made, custom_generate=PRESENT, num_beams=3, **asked)
    assert torch.equal(one, answer(made, **asked))


@pytest.mark.parametrize("name", ["llama4", "granite4_vision"])
def test_such_images_can_be_cut_down(name):
    """To 2 tokens each: the prompt is that much shorter."""
    made = tiny(name)
    lengths = []

    class Watched(OutlierImage):
        def __call__(self, expert, model):
            amateur = super().__call__(expert, model)
            lengths.append((expert.length - amateur.length, amateur.image_mask.sum().item()))
            return amateur

    recipe = Recipe(contrasts=(Watched(k=2, score="norm"),), rule=ExpertOnly())
    answer(made, [PROMPTS[0]], custom_generate=recipe, max_new_tokens=1)
    assert lengths == [(made.tokens - 2, 2)]


def test_features_of_layers_keep_their_layer_and_shared_ones_stay_whole():
    images = [torch.rand(2, 4), torch.rand(3, 4), torch.rand(5, 4)]
    layers = [(7, images), (9, [2 * image for image in images])]
    encoded = SimpleNamespace(deepstack_features=layers, visual_indicator_features=torch.rand(6, 4))
    assert image_lengths({"image": encoded}, "image") == [2, 3, 5]
    chosen = select_images(encoded, [2, 0])
    assert [layer for layer, _ in chosen.deepstack_features] == [7, 9]
    for factor, (_, left) in zip((1, 2), chosen.deepstack_features, strict=True):
        for image, number in zip(left, (2, 0), strict=True):
            assert torch.equal(image, factor * images[number])
    assert chosen.visual_indicator_features is encoded.visual_indicator_features
    paired = alternating(encoded, select_images(encoded, [2, 2, 2]))
    assert [len(p) for p in paired.deepstack_features[0][1]] == [2, 5, 3, 5, 5, 5]


def test_a_video_fills_the_tokens_of_all_its_frames():
    video = {"video": BaseModelOutputWithPooling(pooler_output=torch.rand(2, 3, 4, 8))}
    assert image_lengths(video, "video") == [12, 12]


def test_unknown_fields_of_an_encoder_are_refused_by_name():
    encoded = SimpleNamespace(pooler_output=torch.rand(2, 3, 4), depth_maps=torch.rand(2, 3))
    with pytest.raises(ValueError, match="holds depth_maps"):
        select_images(encoded, [0])
    with pytest.raises(ValueError, match="found no images in SimpleNamespace"):
        image_lengths({"image": SimpleNamespace(hidden_states=())}, "image")


# What caches keep

SPARSE = {  # fewer keys than the prompt has, so that the choice of keys decides
    "mistral_large4": dict(text_config__index_topk=6),
    "dots3_note": dict(text_config__index_topk=6),
    "qwen4_exp": dict(text_config__indexer_budget=8),
    "glm5_next": dict(text_config__index_topk=8, text_config__index_kpool=4),
    "minimax_m3_vl": dict(
        text_config__layer_types=["minimax_m3_sparse"] * 3,
        text_config__index_block_size=2,
        text_config__index_topk_blocks=3,
        text_config__index_local_blocks=1,
    ),
}

# Its blocks of keys begin at multiples of their size, padding included, with `generate` as well:
# the padding of a shorter branch moves them.
SHIFTED = ("minimax_m3_vl",)


@pytest.mark.parametrize("name", SPARSE)
def test_what_an_indexer_remembers_goes_with_the_keys(name):
    """At every step the expert's logits are `generate`'s, and the amateur's those of a forward
    without a cache."""
    made = tiny(name, **SPARSE[name])
    told = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=4)
    row, image_free = PROMPTS[0], [token for token in PROMPTS[0] if token != IMAGE]
    plain = answer(made, [row], **told)
    dense = answer(tiny(name), [row], **told)
    assert not torch.allclose(plain.logits[0], dense.logits[0], **CLOSE)
    got = answer(made, [row], custom_generate=PRESENT, **told)
    assert torch.equal(got.sequences, plain.sequences)
    said = got.sequences[0, -4:].tolist()
    for step, (expert, amateur) in enumerate(got.branch_logits):
        torch.testing.assert_close(expert, plain.logits[step], **CLOSE)
        if name not in SHIFTED or step == 0:
            whole = last_logits(made, image_free, said[:step])
            torch.testing.assert_close(amateur[0], whole, **CLOSE)


def test_a_window_over_the_answer_keeps_the_whole_prompt():
    made = tiny("unlimited_ocr")
    asked = dict(max_new_tokens=24)  # past the window of 16
    assert torch.equal(answer(made, custom_generate=PRESENT, **asked), answer(made, **asked))


class Odd(DynamicLayer):
    def __init__(self, **kwargs):
        super().__init__()
        self.summary = None


def test_layers_that_keep_something_unknown_are_refused_by_name(monkeypatch):
    made = tiny("llava")
    monkeypatch.setitem(DYNAMIC_LAYER_TYPE_MAPPING, "odd", Odd)
    made.model.config.text_config.layer_types = ["odd"] * 3
    ran = []
    made.model.model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match="layers of Odd, which keep summary"):
        answer(made, custom_generate=VDD(alpha=1.0))
    assert not ran


def test_a_cache_made_for_another_model_is_refused():
    with pytest.raises(
        ValueError, match=r"needs a \w+Layer, and past_key_values has a DynamicLayer"
    ):
        answer(tiny("qwen4_exp"), custom_generate=VDD(alpha=1.0), past_key_values=DynamicCache())


def test_compressed_keys_can_be_cut():
    """Kimi's cache has one head for all four of its attention."""
    made = tiny("kimi_k25")
    assert scratch_cache(made.model).layers[0].keys is None
    kept = []

    class Watched(WeakAnswerKeys):
        def __call__(self, layer, recorder):
            keep = super().__call__(layer, recorder)
            kept.append((recorder.kv_heads, None if keep is None else tuple(keep.shape)))
            return keep

    recipe = Recipe(rule=ExpertOnly(), cache_evictions=(Watched(keep=0.5, every=4),))
    answer(made, [PROMPTS[0]], custom_generate=recipe, max_new_tokens=6, min_new_tokens=6)
    width = made.inputs([PROMPTS[0]])["input_ids"].shape[1]
    assert {heads for heads, _ in kept} == {1}
    assert (1, (1, 1, width + 4)) in kept


# Positions


def test_text_may_count_in_one_row_and_images_in_four():
    made = tiny("minicpmv4_7")
    inputs = made.inputs(PROMPTS)
    assert made.model._prepare_position_ids_for_generation(inputs["input_ids"], inputs).ndim == 3
    assert torch.equal(answer(made, custom_generate=PRESENT), answer(made))


# Pixels


def noised(vision=None, **pixels):
    ids = torch.zeros(1, 1, dtype=torch.long)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    branch = Branch(ids, ids, ids.bool(), pixels=pixels)
    return NoisyImage(999)(branch, model).pixels


def independent(values):
    """Whether no two entries of the first dimension are alike."""
    return len(torch.unique(values.flatten(1), dim=0)) == len(values)


@pytest.mark.parametrize("shape", [(3, 4, 4), (8, 8, 3)], ids=["squares", "colours last"])
def test_patches_with_a_grid_are_one_image(shape):
    grids = tensor([[1, 4, 6], [1, 4, 4]])
    both = noised(pixel_values=torch.zeros(40, *shape), image_grid_thw=grids)["pixel_values"]
    alone = noised(pixel_values=torch.zeros(16, *shape), image_grid_thw=grids[1:])["pixel_values"]
    assert independent(both[:24])
    assert torch.equal(both[24:], alone)


def test_grids_of_rows_and_columns():
    grids = tensor([[4, 6], [4, 4]])
    both = noised(pixel_values=torch.zeros(40, 12), image_grid_hw=grids)["pixel_values"]
    alone = noised(pixel_values=torch.zeros(16, 12), image_grid_hw=grids[1:])["pixel_values"]
    assert independent(both[:24])
    assert torch.equal(both[24:], alone)


@pytest.mark.parametrize(
    ("word", "axis"), [("temporal_patch_size", 2), ("patch_temporal", 1)], ids=str
)
@pytest.mark.parametrize("is_grey", [False, True], ids=["in colour", "grey"])
def test_copies_of_a_still_frame_carry_the_same_noise(word, axis, is_grey):
    """Two frames of three colours, in either order; of a grey image the copies do not tell."""
    vision = SimpleNamespace(**{word: 2}, in_channels=3)
    frame = torch.rand(16, 1 if is_grey else 3, 49).expand(16, 3, 49)
    pixels = torch.stack([frame, frame], dim=axis).flatten(1)
    got = noised(vision, pixel_values=pixels, image_grid_thw=tensor([[1, 4, 4]]))["pixel_values"]
    drawn = got - 0.285042 * pixels  # what is left of the image after 999 steps
    first, second = drawn.unflatten(1, (2, 3, 49) if axis == 1 else (3, 2, 49)).unbind(axis)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert independent(first.reshape(48, 49))


def test_copies_tell_the_order_against_the_config():
    vision = SimpleNamespace(temporal_patch_size=2, in_channels=3)
    frame = torch.rand(4, 3, 49)
    pixels = torch.stack([frame, frame], dim=1).flatten(1)
    got = noised(vision, pixel_values=pixels, image_grid_thw=tensor([[1, 2, 2]]))["pixel_values"]
    first, second = got.view(4, 2, 3, 49).unbind(1)
    assert torch.equal(first, second)


def test_patches_of_one_frame_are_taken_as_they_are():
    """A config may name a depth in time that its still images do not have."""
    vision = SimpleNamespace(temporal_patch_size=2, in_channels=3, patch_size=4)
    got = noised(vision, pixel_values=torch.zeros(4, 48), image_grid_thw=tensor([[1, 2, 2]]))
    assert independent(got["pixel_values"].T)


def test_a_strip_of_all_images():
    """2 x 3 and 2 x 2 patches of 4 pixels, side by side."""
    sizes = tensor([[2, 3], [2, 2]])
    strip = noised(pixel_values=torch.zeros(1, 3, 4, 40), target_sizes=sizes)["pixel_values"]
    alone = noised(pixel_values=torch.zeros(1, 3, 4, 16), target_sizes=sizes[1:])["pixel_values"]
    assert torch.equal(strip[..., 24:], alone)
    assert independent(strip[0, 0].T)


def test_padding_gets_no_noise_and_changes_none():
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, :6, :4] = mask[1, 0] = True
    padded = noised(pixel_values=torch.zeros(2, 1, 3, 8, 8), pixel_attention_mask=mask)
    alone = noised(
        pixel_values=torch.zeros(1, 1, 3, 6, 4), pixel_attention_mask=mask[:1, :, :6, :4]
    )
    first = padded["pixel_values"][0, 0]
    assert torch.equal(first[:, :6, :4], alone["pixel_values"][0, 0])
    assert not first[:, 6:].any() and not first[:, :, 4:].any()


@pytest.mark.parametrize("how", ["mask", "places"])
def test_patches_padded_to_the_longest_image(how):
    """Of 5 numbers, so that a draw's end would show in what stands before it."""
    places = tensor([[[0, 0], [1, 0], [2, 0], [-1, -1]], [[0, 0], [1, 0], [2, 0], [3, 0]]])
    given = {
        "mask": dict(pixel_attention_mask=(places >= 0).all(dim=-1).long()),
        "places": dict(image_position_ids=places),
    }[how]
    padded = noised(pixel_values=torch.zeros(2, 4, 5), **given)["pixel_values"]
    alone = noised(
        pixel_values=torch.zeros(1, 3, 5), **{name: v[:1, :3] for name, v in given.items()}
    )["pixel_values"]
    assert torch.equal(padded[0, :3], alone[0])
    assert not padded[0, 3].any() and padded[1].all()


def test_images_that_fill_up_a_row_stay_empty():
    """Idefics knows them by their zeros."""
    pixels = torch.rand(2, 2, 3, 4, 4)
    pixels[1, 1] = 0
    got = noised(pixel_values=pixels)["pixel_values"]
    assert not got[1, 1].any()
    assert (got[0] != pixels[0]).all()


def test_tiles_and_frames_in_runs():
    tiles = noised(
        pixel_values=torch.zeros(2, 3, 4, 4),
        pixel_values_local=torch.zeros(5, 3, 4, 4),
        num_local_patches=tensor([3, 2]),
    )["pixel_values_local"]
    assert independent(tiles[:3])
    assert torch.equal(tiles[3:], tiles[:2])
    frames = noised(
        pixel_values_videos=torch.zeros(3, 2, 6),
        video_position_ids=torch.zeros(3, 2, 2, dtype=torch.long),
        num_frames_per_video=tensor([2, 1]),
    )["pixel_values_videos"]
    assert independent(frames[:2])
    assert torch.equal(frames[2], frames[0])


@pytest.mark.parametrize(
    "given",
    [
        dict(pixel_values=torch.zeros(24, 12), image_grid_thw=tensor([[1, 4, 4]])),
        dict(pixel_values=torch.zeros(1, 3, 4, 40), target_sizes=tensor([[2, 3]])),
        dict(
            pixel_values_local=torch.zeros(5, 3, 4, 4),
            num_local_patches=tensor([3]),
        ),
    ],
    ids=["grid", "strip", "tiles"],
)
def test_sizes_that_are_not_the_pixels_are_refused(given):
    with pytest.raises(ValueError, match="must know where an image ends: its sizes make"):
        noised(**given)


def test_idefics_rows_with_one_and_two_images():
    made = tiny("idefics2")
    rows = [[1, 8, IMAGE, 9, IMAGE, 20], [1, IMAGE, 12, 13]]
    noisy = Recipe(contrasts=(NoisyImage(700, seed=3),), rule=ExpertOnly())
    assert torch.equal(answer(made, rows, custom_generate=noisy), answer(made, rows))


# Attention


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mistral_large4", "chooses its keys by indices"),
        ("dots3_note", "chooses its keys by indices"),
        ("inkling2", "uses sinks, position_bias"),
    ],
)
def test_attention_that_is_not_reproduced_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        answer(tiny(name), custom_generate=Recipe(attention_edits=(ImageGain(2.0, layers=(0, 3)),)))


def test_sparse_blocks_are_refused():
    made = tiny("minimax_m3_vl", **SPARSE["minimax_m3_vl"])
    with pytest.raises(ValueError, match="chooses its keys by block_indices"):
        answer(made, custom_generate=Recipe(attention_edits=(ImageGain(2.0, layers=(0, 3)),)))


def test_no_mask_is_not_always_causal():
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind(0)
    recorder = AttentionRecorder(
        torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool), 1
    )
    recorder.begin(0, 5)

    def run(**given):
        plan = AttentionPlan([BranchAttention(recorder, (), {0: frozenset({"columns"})})])
        module = SimpleNamespace(layer_idx=0)
        given = {KEYWORD: plan, "scaling": 0.5, **given}
        return recalibrated(None, module, query, key, value, None, **given)[0]

    whole = (query @ key.mT * 0.5).softmax(dim=-1) @ value
    torch.testing.assert_close(run(is_causal=False), whole.transpose(1, 2))
    causal, _ = attend(query, key, value, scaling=0.5, causal=True)
    torch.testing.assert_close(run(), causal)


def test_layers_without_attention_cannot_be_edited():
    """Layers 0 and 1 of this one keep a state, and mix no tokens; layer 2 attends."""
    made = tiny("nemotron_h_omni")
    with pytest.raises(ValueError, match=r"layers \(0, 2\) of this model have no attention"):
        answer(made, custom_generate=VAF(enhance=0.5, suppress=0.4, layers=(0, 2)))


def ledger_of(**given):
    mask = torch.ones(1, 4, dtype=torch.bool)
    return AttentionRecorder(mask, mask, 4, **given)


@pytest.mark.parametrize(
    "part",
    [
        ImageGain(1.0, layers=(1, 3)),
        ImageScale(1.5, 0.5, layers=(1, 3)),
        LeastAttended(start=1),
    ],
    ids=lambda part: type(part).__name__,
)
def test_some_layer_of_a_range_must_attend(part):
    with pytest.raises(ValueError, match="have no attention to edit"):
        part.check(ledger_of(blind=frozenset({1, 2, 3})))
    part.check(ledger_of(blind=frozenset({1})))


def test_heads_have_no_numbers_where_layers_differ():
    with pytest.raises(ValueError, match="differ in number of heads"):
        ImageScale(1.5, 0.5, layers=(1, 3), heads=(0,)).check(ledger_of(heads=None))


def test_a_layer_that_is_not_reached_is_an_error(monkeypatch):
    made = tiny("llava")
    attention = made.model.model.language_model.layers[1].self_attn
    forward = attention.forward
    monkeypatch.setattr(
        attention,
        "forward",
        lambda *args, sightline_streams=None, **given: forward(*args, **given),
    )
    with pytest.raises(ValueError, match=r"the attention of layers \[1\]"):
        answer(made, custom_generate=SID(alpha=1.0, start=1))


def test_a_model_without_a_text_config_can_be_recalibrated():
    made = tiny("chameleon")
    before = made.model.config._attn_implementation
    with torch.no_grad():
        plain = last_logits(made, PROMPTS[0])
    told = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=1)
    edit = Recipe(attention_edits=(ImageGain(5.0, layers=(0, 2)),))
    got = answer(made, [PROMPTS[0]], custom_generate=edit, suppress_tokens=None, **told)
    assert (got.logits[0][0] - plain).abs().max() > 1e-3
    assert made.model.config._attn_implementation == before


# Logits of states


@pytest.mark.parametrize("name", ["qwen4_exp", "glm5_next"])
@pytest.mark.parametrize(
    "decoder",
    [VASparse(keep=1, sink=0), DoLa(layers=(0, 1))],
    ids=lambda decoder: type(decoder).__name__,
)
def test_states_of_several_streams_are_refused(name, decoder):
    with pytest.raises(ValueError, match="several streams run side by side"):
        answer(tiny(name), custom_generate=decoder)


@pytest.mark.parametrize(("name", "found"), [("llama4", "norm"), ("lfm2_vl", "embedding_norm")])
def test_the_last_norm_is_found(name, found):
    model = tiny(name).model
    text = model.get_decoder()
    assert last_norm(model) is getattr(getattr(text, "model", text), found)


def test_tokens_that_the_model_bans_stay_banned_in_earlier_layers():
    made = tiny("chameleon")
    banned = made.model.model.vocabulary_mapping.image_tokens
    seen = []

    @dataclass(frozen=True)
    class Early(Rule):
        @property
        def needs(self):
            return Needs(early=lambda blocks, tied: (0,))

        def combine(self, logits, state):
            seen.append(state.early[0])
            return logits[0]

    answer(made, custom_generate=Recipe(rule=Early()), max_new_tokens=1)
    lowest = seen[0] == torch.finfo(torch.float32).min
    assert lowest[:, banned].all()
    assert lowest.sum() == len(PROMPTS) * len(banned)
