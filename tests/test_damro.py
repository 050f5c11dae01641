"""DAMRO: its scores by hand, its choice of tokens, and the amateur that sees no others."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from models import (
    BOS,
    FAMILIES,
    IMAGE,
    PAD,
    PROMPTS,
    VIDEO,
    VISION_END,
    VISION_START,
    lfm2,
    lfm2_inputs,
    llava_inputs,
)
from models import llava as build_llava
from tiny_families import Tiny, by_family, families
from torch import nn, tensor
from transformers import (
    LlavaNextConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sightline import VDD, Branch, Recipe
from sightline.decoders.damro.damro import DAMRO
from sightline.decoders.damro.outliers import (
    OutlierImage,
    Score,
    concat_attention,
    head_mean,
    norm,
    only,
    outliers,
    pooled_query,
    received,
)
from sightline.logits.rules import Contrastive

BUILT = [name for name, family in families().items() if not family.why_untested]
SIX_DIGITS = dict(atol=1e-6, rtol=0)  # float64, numbers of the note
FLOAT32 = dict(atol=1e-5, rtol=1e-4)
IMAGE_TOKENS = [IMAGE, VIDEO, VISION_START, VISION_END]


def f64(values):
    return tensor(values, dtype=torch.float64)


# Scores by hand (sections 5.1 to 5.3 and 8 of the method's note)

CLS_QUERY = [1, 0, 0, 1]
KEYS = f64(
    [
        [0, 0, 0, 0],
        [6, 0, 0, -4],
        [2, 0, 0, 2],
        [1, 0, 0, 1],
        [0, 0, 0, 5],
        [3, 0, 0, 0.5],
        [-1, 0, 0, 0],
    ]
)
QUERIES = f64([CLS_QUERY] + [[math.nan] * 4] * 6)  # of the class token's row alone


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (2.0, [3.8, 4.6, -math.inf, 2.5, -math.inf]),
        (1.5, [3.6, 4.0, -math.inf, 2.6, -math.inf]),
        (0.5, [3.2, 2.8, -math.inf, 2.8, -math.inf]),
    ],
)
def test_combined_logits(alpha, expected):
    expert, amateur = f64([[3.0, 2.2, 0.4, 2.9, -0.5]]), f64([[2.6, 1.0, 0.5, 3.1, 0.3]])
    scores = DAMRO(alpha=alpha).recipe().rule([expert, amateur])
    torch.testing.assert_close(scores, f64([expected]), **SIX_DIGITS)


def test_heads_taken_for_one():
    expected = f64([0.030894, 0.083977, 0.228274, 0.083977, 0.376360, 0.177780, 0.018738])
    attention = concat_attention(QUERIES, KEYS)
    torch.testing.assert_close(attention, expected, **SIX_DIGITS)
    assert outliers(attention[1:], 6).tolist() == [3, 1, 4, 0, 2, 5]  # of equals the first
    assert outliers(attention[1:], 2).tolist() == [3, 1]


def test_mean_over_heads():
    expected = f64([0.017156, 0.402619, 0.070565, 0.034793, 0.396251, 0.064389, 0.014228])
    attention = head_mean(QUERIES, KEYS, heads=2)
    torch.testing.assert_close(attention, expected, **SIX_DIGITS)
    assert outliers(attention[1:], 6).tolist() == [0, 3, 1, 4, 2, 5]
    assert outliers(attention[1:], 3).tolist() == [0, 3, 1]


def test_substitutes_without_a_class_token():
    queries = f64([[1, 0], [0, 1], [1, 1], [3, -1]])
    keys = f64([[0.5, 0.5], [2, 0], [0, 1], [1, 1]])
    pooled = pooled_query(queries, keys, heads=1)
    torch.testing.assert_close(pooled, f64([0.146018, 0.503292, 0.102532, 0.248157]), **SIX_DIGITS)
    got = received(queries, keys, heads=1)
    torch.testing.assert_close(got, f64([0.144437, 0.470592, 0.150325, 0.234646]), **SIX_DIGITS)
    assert outliers(pooled, 2).tolist() == outliers(got, 2).tolist() == [1, 3]
    lengths = norm(tensor([[3.0, 4], [0, 1], [6, 8], [1, 1]]))
    torch.testing.assert_close(lengths, tensor([5, 1, 10, 2**0.5]))
    assert outliers(lengths, 2).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("tokens", "k"),
    [(576, 10), (256, 4), (729, 13), (1024, 18), (196, 3), (64, 1), (16, 1)],
)
def test_k_follows_the_number_of_tokens(tokens, k):
    assert len(outliers(torch.arange(float(tokens)), None)) == k


# The vision tower's own attention


def encoded_branch(model, inputs, **pixels):
    """An expert as the ensemble hands it to a contrast."""
    ids = inputs["input_ids"]
    pixels |= {k: inputs[k] for k in inputs if "pixel" in k or "grid" in k or "size" in k}
    pixels |= {k: inputs[k] for k in inputs if k == "spatial_shapes"}
    return Branch(
        ids,
        inputs["attention_mask"],
        ids == IMAGE,
        aligned={k: inputs[k] for k in inputs if k == "mm_token_type_ids"},
        features={"image": model.model.get_image_features(**pixels, return_dict=True)},
        pixels=pixels,
    )


@pytest.fixture(scope="module")
def deep_llava():
    """As the tiny LLaVA, with five layers in its vision tower; features leave the fourth."""
    return build_llava(clip=dict(num_hidden_layers=5), vision_feature_layer=-2)


def tower_attention(model, pixels):
    """Every layer's attention probabilities `[P, H, S, S]`, by the tower itself."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        return tower(pixels, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "pixels", "layer"),
    [
        ({}, {}, 3),
        ({"layer": "last"}, {}, 4),
        ({}, {"vision_feature_layer": -1}, 4),
        ({}, {"vision_feature_layer": 2}, 1),
    ],
    ids=["features", "last", "caller's -1", "caller's 2"],
)
def test_class_attention_is_the_towers_own(deep_llava, settings, pixels, layer):
    inputs = llava_inputs(PROMPTS)
    expert = encoded_branch(deep_llava, inputs, **pixels)
    attention = tower_attention(deep_llava, inputs["pixel_values"])[layer]
    scores = OutlierImage(score="head_mean", **settings).scores(expert, deep_llava)
    torch.testing.assert_close(torch.stack(scores), attention.mean(1)[:, 0, 1:], **FLOAT32)


@torch.no_grad()
def test_substitutes_leave_the_class_token_out(deep_llava):
    """Attention among patches, so normalised without the class token's key."""
    inputs = llava_inputs(PROMPTS)
    expert = encoded_branch(deep_llava, inputs)
    among = tower_attention(deep_llava, inputs["pixel_values"])[3][:, :, 1:, 1:]
    expected = (among / among.sum(-1, keepdim=True)).mean(dim=(1, 2))
    scores = OutlierImage(score="received").scores(expert, deep_llava)
    torch.testing.assert_close(torch.stack(scores), expected, **FLOAT32)


@torch.no_grad()
def test_chosen_features_are_the_outliers_themselves(deep_llava):
    """Not their neighbours: attention counts the class token, features usually do not."""
    for strategy, tokens, first in (("default", 16, 0), ("full", 17, 1)):
        row = [BOS, 8, *[IMAGE] * tokens, 9]
        inputs = dict(llava_inputs(PROMPTS[1:]), input_ids=tensor([row]))
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        expert = encoded_branch(deep_llava, inputs, vision_feature_select_strategy=strategy)
        attention = tower_attention(deep_llava, inputs["pixel_values"])[3].mean(1)[0, 0]
        patches = (attention[1:].topk(3).indices + first).tolist()
        amateur = OutlierImage(3, "head_mean")(expert, deep_llava)
        (whole,), (left,) = (b.features["image"].pooler_output for b in (expert, amateur))
        assert len(whole) == tokens
        assert torch.equal(left, whole[patches])


@torch.no_grad()
def test_auto_takes_the_class_token_where_there_is_one(llava, qwen):
    for (model, make_inputs), same in ((llava, "concat"), (qwen, "pooled_query")):
        expert = encoded_branch(model, make_inputs(PROMPTS))
        scores = OutlierImage().scores(expert, model)
        assert all(map(torch.equal, scores, OutlierImage(score=same).scores(expert, model)))


@torch.no_grad()
def test_pooled_query_of_a_tower_with_windows_and_rotary(qwen):
    """4 x 6 patches in groups of 2 x 2, groups in windows of 2 x 2: by hand, in plain order."""
    model, make_inputs = qwen
    inputs = make_inputs([PROMPTS[1]])
    attention = model.model.visual.blocks[1].attn
    entered = []
    handle = attention.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    expert = encoded_branch(model, inputs)
    handle.remove()
    # Groups 0 1 2 / 3 4 5 of the image go through the tower as windows 0 1 3 4, 2 5.
    windows = [0, 1, 3, 4, 2, 5]
    hidden = dict(zip(windows, entered[0].view(6, 4, 32), strict=True))
    q, k = [], []
    for group in range(6):
        for inner in range(4):
            h, w = 2 * (group // 3) + inner // 2, 2 * (group % 3) + inner % 2
            qkv = attention.qkv(hidden[group][inner]).view(3, 2, 16)
            angles = tensor([p / 10000 ** (i / 4) for p in (h, w) for i in range(4)])
            for kept, vectors in ((q, qkv[0]), (k, qkv[1])):
                left, right = vectors[:, :8], vectors[:, 8:]
                cos, sin = angles.cos(), angles.sin()
                kept.append(torch.cat([left * cos - right * sin, right * cos + left * sin], -1))
    q, k = torch.stack(q, dim=1), torch.stack(k, dim=1)  # [heads, patches, 16]
    weights = (k @ q.mean(1)[..., None])[..., 0].div(4).softmax(-1).mean(0)
    expected = weights.view(6, 4).sum(1)
    (scores,) = OutlierImage().scores(expert, model)
    torch.testing.assert_close(scores, expected, **FLOAT32)
    assert scores.argsort().tolist() != scores[windows].argsort().tolist()


@torch.no_grad()
def test_an_image_is_scored_without_its_neighbours(family):
    _, model, make_inputs = family
    two = OutlierImage().scores(encoded_branch(model, make_inputs(PROMPTS)), model)
    for prompt, scores in zip(PROMPTS, two, strict=True):
        (one,) = OutlierImage().scores(encoded_branch(model, make_inputs([prompt])), model)
        torch.testing.assert_close(scores, one, **FLOAT32)


# The amateur's prompt


def cut(row, k):
    """A row of tokens as the amateur of the family reads it, without padding."""
    return [token for x in row for token in ([x] * k if x == IMAGE else [x])]


@torch.no_grad()
@pytest.mark.parametrize("score", ["auto", "received", "norm"])
def test_each_image_is_k_tokens(family, score):
    name, model, make_inputs = family
    rows = [[BOS, 8, IMAGE, IMAGE, 9], [BOS, 11], [BOS, IMAGE, 10, IMAGE]]
    expert = encoded_branch(model, make_inputs(rows))
    contrast = OutlierImage(3, score)
    scores = contrast.scores(expert, model)
    amateur = contrast(expert, model)
    wrap = [VISION_START, IMAGE, VISION_END] if name == "qwen" else [IMAGE]
    for row, ids, mask in zip(rows, amateur.input_ids, amateur.attention_mask, strict=True):
        wanted = cut([t for x in row for t in (wrap if x == IMAGE else [x])], 3)
        assert ids[mask.bool()].tolist() == wanted
        assert ids[: -len(wanted)].tolist() == [PAD] * (len(ids) - len(wanted))
        assert mask.tolist() == [0] * (len(ids) - len(wanted)) + [1] * len(wanted)
    assert torch.equal(amateur.image_mask, amateur.input_ids == IMAGE)
    for values in amateur.aligned.values():
        assert torch.equal(values.bool(), amateur.image_mask)
    assert amateur.position_ids is None and not amateur.pixels
    images = expert.features["image"].pooler_output
    left = amateur.features["image"].pooler_output
    assert len(left) == 4
    for image, kept, values in zip(images, left, scores, strict=True):
        assert torch.equal(kept, image[values.argsort(descending=True)[:3]])


def test_features_of_deeper_layers_are_chosen_alike():
    """What Qwen3-VL feeds its first text layers, `deepstack_features[layer][image]`."""
    images = [torch.randn(5, 4), torch.randn(3, 4)]
    deep = [[image + i for image in images] for i in (1, 2)]
    chosen = [tensor([4, 0]), tensor([2, 1])]
    left = only(SimpleNamespace(pooler_output=images, deepstack_features=deep), chosen)
    for p, index in enumerate(chosen):
        assert torch.equal(left.pooler_output[p], images[p][index])
        assert all(torch.equal(left.deepstack_features[i][p], deep[i][p][index]) for i in (0, 1))


def test_images_in_one_tensor_stay_in_one():
    """What PaliGemma's forward asks for, where LLaVA's takes a list."""
    images = torch.randn(2, 5, 4)
    left = only(SimpleNamespace(pooler_output=images), [tensor([4, 0]), tensor([2, 1])])
    assert torch.equal(left.pooler_output, torch.stack([images[0, [4, 0]], images[1, [2, 1]]]))


# An image in tiles


@pytest.fixture(scope="module")
def llava_next():
    grids = [[32, 64], [64, 32]]
    tower = dict(num_hidden_layers=3)
    settings = dict(image_grid_pinpoints=grids, vision_feature_layer=-2)
    return build_llava(kind=LlavaNextConfig, clip=tower, **settings)


@torch.no_grad()
def test_of_tiles_the_whole_image_counts_and_one_newline(llava_next):
    model = llava_next
    pixels = torch.randn(2, 3, 3, 32, 32)  # the whole and two tiles
    sizes = tensor([[32, 64], [60, 32]])
    features = model.model.get_image_features(pixels, image_sizes=sizes).pooler_output
    rows = [[BOS, 8, *[IMAGE] * len(features[0]), 9], [BOS, *[IMAGE] * len(features[1])]]
    width = max(map(len, rows))
    ids = tensor([[PAD] * (width - len(row)) + row for row in rows])
    inputs = dict(input_ids=ids, attention_mask=(ids != PAD).long())
    inputs |= dict(pixel_values=pixels, image_sizes=sizes)
    expert = encoded_branch(model, inputs)
    contrast = OutlierImage(3, "head_mean")
    scores = contrast.scores(expert, model)
    attention = tower_attention(model, pixels[:, 0])[1].mean(1)[:, 0, 1:]
    torch.testing.assert_close(torch.stack(scores), attention, **FLOAT32)
    left = contrast(expert, model).features["image"].pooler_output
    for image, kept, values in zip(features, left, scores, strict=True):
        assert len(image) > 16 + 1
        torch.testing.assert_close(kept[:3], image[:16][values.topk(3).indices])
        assert torch.equal(kept[3], model.model.image_newline)
    out = model.generate(**inputs, max_new_tokens=3, custom_generate=DAMRO())
    assert out.shape[1] == width + 3


# The whole method


def generate(model, inputs, decoder=None, **kwargs):
    return model.generate(**inputs, **{"max_new_tokens": 6, "custom_generate": decoder, **kwargs})


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 3], ids=["greedy", "3 samples"])
@pytest.mark.parametrize("score", ["auto", "norm"])
def test_amateur_equals_a_full_forward_on_k_tokens(family, copies, score):
    """First and later steps, a padded batch, positions without a gap."""
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    torch.manual_seed(0)
    out = generate(
        model,
        inputs,
        DAMRO(k=3, score=score),
        do_sample=copies > 1,
        top_k=0,
        num_return_sequences=copies,
        suppress_tokens=IMAGE_TOKENS,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for row, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(copies)):
        alone = make_inputs([prompt])
        expert = encoded_branch(model, alone)
        (scores,) = OutlierImage(score=score).scores(expert, model)
        features = expert.features["image"].pooler_output[0][scores.topk(3).indices]
        ids, places = alone["input_ids"][0], []
        for place, token in enumerate(ids.tolist()):
            if token != IMAGE or (ids[:place] == IMAGE).sum() < 3:
                places.append(place)
        for step in range(len(out.logits)):
            answer = out.sequences[row, inputs["input_ids"].shape[1] :][:step]
            tokens = torch.cat([ids[places], answer])[None]
            position = torch.arange(tokens.shape[1])[None]
            if "image_grid_thw" in alone:  # M-RoPE: the same for time, height and width
                position = position[None].expand(3, -1, -1)
            encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features])}
            logits = model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                position_ids=position,
                mm_encoder_outputs=encoded,
            ).logits[0, -1]
            amateur = out.branch_logits[step][1, row]
            torch.testing.assert_close(amateur, logits, atol=2e-4, rtol=1e-4)  # float32
            expert_logits = out.branch_logits[step][0, row]
            expected = 3 * expert_logits - 2 * amateur
            left = expert_logits.clone()
            left[IMAGE_TOKENS] = -math.inf
            expected[left < left.max() + math.log(0.1)] = -math.inf
            torch.testing.assert_close(out.scores[step][row], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", [{}, dict(num_beams=3)], ids=["greedy", "3 beams"])
def test_answers_in_batches(family, mode):
    _, model, make_inputs = family
    decoder = DAMRO(k=3)
    inputs = make_inputs(PROMPTS)
    together = generate(model, inputs, decoder, **mode)
    plain = generate(model, inputs, **mode)
    assert together.shape != plain.shape or not torch.equal(together, plain)
    assert torch.equal(generate(model, inputs, DAMRO(alpha=0, beta=0), **mode), plain)
    for row, prompt in enumerate(PROMPTS):
        one = make_inputs([prompt])
        answer = generate(model, one, decoder, **mode)[0, one["input_ids"].shape[1] :].tolist()
        assert together[row, inputs["input_ids"].shape[1] :].tolist()[: len(answer)] == answer


def test_two_threads_on_one_model(family):
    _, model, make_inputs = family
    contrast = OutlierImage(3)
    experts = [encoded_branch(model, make_inputs([prompt])) for prompt in PROMPTS]
    alone = [contrast.scores(expert, model)[0] for expert in experts]

    def score(i):
        with torch.no_grad():
            return contrast.scores(experts[i % 2], model)[0]

    with ThreadPoolExecutor(4) as threads:
        for i, scores in enumerate(threads.map(score, range(40))):
            assert torch.equal(scores, alone[i % 2])


def test_nothing_is_left_on_the_tower(family):
    _, model, make_inputs = family
    inputs = make_inputs(PROMPTS)
    generate(model, inputs)

    def hooks():
        return [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__))
            for name, m in model.named_modules()
        ]

    before = hooks()
    generate(model, inputs, DAMRO(k=3))
    assert hooks() == before
    broken = dict(inputs, pixel_values=inputs["pixel_values"][:, :2])
    with pytest.raises(Exception, match=r"."):
        generate(model, broken, DAMRO(k=3))
    assert hooks() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(family, dtype):
    name, _, make_inputs = family
    model = FAMILIES[name][0]().to(dtype)
    inputs = make_inputs(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    (scores, _) = OutlierImage().scores(encoded_branch(model, inputs), model)
    assert scores.dtype == torch.float32
    generate(model, inputs, DAMRO(k=3))


# Refusals: before the language model runs


class LanguageModelRan(Exception):
    pass


@pytest.fixture
def refuses():
    """Checks that a call is refused and that no forward of the language model came first."""

    def check(model, inputs, decoder, message):
        def ran(*_):
            raise LanguageModelRan

        handle = model.lm_head.register_forward_pre_hook(ran)
        try:
            with pytest.raises(ValueError, match=message):
                generate(model, inputs, decoder)
        finally:
            handle.remove()

    return check


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(k=0), "k must be a whole number from 1 to"),
        (dict(k=True), "k must be a whole number"),
        (dict(k=2.5), "k must be a whole number"),
        (dict(score="attention"), "score must be one of auto, concat"),
        (dict(layer=-2), "layer must be one of features, last"),
        (dict(alpha=-1), "alpha must be"),
        (dict(beta=2), "beta must be"),
    ],
)
def test_settings_are_checked_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        DAMRO(**settings)


@pytest.mark.parametrize("score", ["auto", "norm"])
def test_k_beyond_the_image(family, refuses, score):
    name, model, make_inputs = family
    count = {"llava": 16, "qwen": 6}[name]
    refuses(model, make_inputs(PROMPTS), DAMRO(k=17, score=score), f"k=17 .* that has {count}")


@pytest.mark.parametrize("score", ["concat", "head_mean"])
def test_class_attention_without_a_class_token(qwen, refuses, score):
    model, make_inputs = qwen
    message = f'score="{score}" .* has none: use .*score="auto" or score="pooled_query"'
    refuses(model, make_inputs(PROMPTS), DAMRO(score=score), message)


def test_tokens_that_are_no_known_groups_of_patches(refuses):
    """Four patches make a token, in an order that the tower does not tell; norm needs no tower."""
    model, inputs = lfm2(), lfm2_inputs(PROMPTS)
    refuses(model, inputs, DAMRO(), '4 tokens .* 16 patches; .* use score="norm"')
    assert generate(model, inputs, DAMRO(score="norm")).shape[0] == 2


def test_a_tower_without_readable_attention(refuses):
    model = build_llava()
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn = Fused(layer.self_attn)
    inputs = llava_inputs(PROMPTS)
    refuses(model, inputs, DAMRO(), 'no vision-tower attention .* use score="norm"')
    assert generate(model, inputs, DAMRO(score="norm")).shape[0] == 2


class Fused(nn.Module):
    """Attention that shows none of its parts."""

    def __init__(self, attention):
        super().__init__()
        self.run = attention.forward

    def forward(self, *args, **kwargs):
        return self.run(*args, **kwargs)


def test_features_of_several_layers(deep_llava, refuses):
    inputs = dict(llava_inputs(PROMPTS), vision_feature_layer=[-2, -1])
    config = deep_llava.config
    features = {"image": BaseModelOutputWithPooling(pooler_output=[torch.randn(16, 32)] * 2)}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    pixels = {"vision_feature_layer": [-2, -1], "pixel_values": inputs["pixel_values"]}
    expert = Branch(ids, mask, ids == IMAGE, features=features, pixels=pixels)
    with pytest.raises(ValueError, match="several layers"):
        OutlierImage()(expert, deep_llava)
    assert config.vision_feature_layer == -2


def test_videos(qwen, refuses):
    model, make_inputs = qwen
    inputs = make_inputs(PROMPTS)
    for name, video in (("pixel_values", "pixel_values_videos"), ("image_grid_thw",) * 2):
        inputs[video.replace("image", "video")] = inputs.pop(name)
    ids = inputs["input_ids"]
    inputs["input_ids"] = ids.masked_fill(ids == IMAGE, VIDEO)
    inputs["mm_token_type_ids"] = (ids == IMAGE).long() * 2
    refuses(model, inputs, DAMRO(), "still images, and this prompt holds video")


def test_pixels_are_needed_for_all_but_the_norm(llava, refuses):
    model, make_inputs = llava
    inputs = make_inputs(PROMPTS)
    encoded = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    inputs["mm_encoder_outputs"] = {"image": encoded}
    refuses(model, inputs, DAMRO(), "needs pixel_values, got pre-encoded")
    assert generate(model, inputs, DAMRO(score="norm")).shape[0] == 2


def test_placeholders_with_tokens_between(llava):
    """Pixtral ends each row of an image with a token of its own."""
    model, _ = llava
    ids = tensor([[BOS, IMAGE, IMAGE, 9, IMAGE, IMAGE, 8]])
    features = {"image": BaseModelOutputWithPooling(pooler_output=[torch.randn(4, 32)])}
    expert = Branch(ids, torch.ones_like(ids), ids == IMAGE, features=features)
    with pytest.raises(ValueError, match="other tokens stand between them"):
        OutlierImage(2, "norm")(expert, model)


def test_presets_and_defaults():
    assert DAMRO() == DAMRO(alpha=2.0, beta=0.1, k=None, score="auto", layer="features")
    assert DAMRO.first_release() == DAMRO(layer="last")
    assert DAMRO().recipe() == Recipe(contrasts=(OutlierImage(),), rule=Contrastive(2.0, 0.1))
    assert DAMRO().needs_pixels and not DAMRO(score="norm").needs_pixels


@pytest.mark.parametrize("name", by_family(BUILT))
def test_what_a_refusal_recommends_works(name):
    """With the model that was refused: each setting that it names, or else VDD."""
    made = Tiny.of(name)

    def answer(decoder):
        asked = dict(max_new_tokens=1, do_sample=False, custom_generate=decoder)
        return made.model.generate(**made.inputs(PROMPTS[:1]), **asked)

    try:
        answer(VDD(beta=0))
    except Exception:
        pytest.skip("no decoder that compares images works with it: docs/families.md says why")
    for score in get_args(Score):
        try:
            answer(DAMRO(score=score))
        except ValueError as refused:
            recommended = str(refused).rpartition(": use ")[2]
        else:
            continue
        settings = re.findall(r'(score|layer)="(\w+)"', recommended)
        assert settings or "(VDD)" in recommended, recommended
        for setting in settings:
            answer(DAMRO(**{"score": score, **dict([setting])}))
