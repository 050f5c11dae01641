"""Worked numbers of AGLA's note (section 5), and BLIP's relevance by other means."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)

from sightline.decoders.agla.matching import (
    BlipMatcher,
    Relevance,
    blurred,
    cleaned,
    cosine_share,
    enlarged,
    entropy_share,
    kept_pixels,
    masked_image,
    spread,
    stretched,
    token_relevance,
)

SIX_DIGITS = dict(atol=1e-6, rtol=0)  # float64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "?", ","]
QUESTION = "Is there a red cat on the mat?"
READ = ["is", "there", "a", "red", "cat", "on", "the", "mat", "?"]
OTHERS = ["dog", "left", "of", "in", "image", "what", "color", "and", "bench", "kite", "two"]
VOCABULARY = SPECIAL + READ[:-1] + OTHERS
PAD, UNK, CLS, SEP = range(4)
LISTED = VOCABULARY.index("[ENC]")
IDS = [VOCABULARY.index(word) for word in READ]
LAYER = 1


def blip(vocabulary=28, dropout=0.0):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    model = BlipForImageTextRetrieval(
        BlipConfig(
            text_config=dict(
                sizes,
                vocab_size=vocabulary,
                max_position_embeddings=64,
                hidden_dropout_prob=dropout,
                bos_token_id=5,
                sep_token_id=SEP,
                initializer_range=0.3,
            ),
            vision_config=dict(sizes, image_size=48, patch_size=8, initializer_range=0.3),
            image_text_hidden_size=16,
        )
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def processor(words=VOCABULARY):
    return BlipProcessor(
        BlipImageProcessorPil(size={"height": 48, "width": 48}),
        BertTokenizer(vocab={word: place for place, word in enumerate(words)}),
    )


def photograph(width=40, height=30, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def model():
    return blip()


@pytest.fixture(scope="module")
def matcher(model):
    return BlipMatcher(model, processor(), LAYER)


@pytest.fixture(scope="module")
def pixels():
    return processor().image_processor(photograph(), return_tensors="pt")["pixel_values"]


# The arithmetic


def test_worked_relevance():
    same, nine = [0.2] * 5, [9.0] * 5
    attention = tensor(
        [
            [same, [0.1, 0.5, 0.2, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], same],
            [same, [0.2, 0.3, 0.3, 0.1, 0.1], [0, 0.2, 0.2, 0.4, 0.2], same],
        ],
        dtype=torch.float64,
    )
    gradient = tensor(
        [
            [nine, [0, 1, -2, 0.5, 0], [0, 0.2, 2, -1, 0.5], nine],
            [nine, [0, -1, 1, 0, 2], [0, 0.5, 0.5, 1, -3], nine],
        ],
        dtype=torch.float64,
    )
    relevance = token_relevance(attention, gradient)
    expected = tensor([0.155, 0.4, 0.1125, 0.0625], dtype=torch.float64)
    torch.testing.assert_close(relevance, expected, **SIX_DIGITS)
    expected = tensor([0.274074, 1, 0.148148, 0], dtype=torch.float64)
    torch.testing.assert_close(stretched(relevance), expected, **SIX_DIGITS)


def test_relevance_needs_a_word():
    with pytest.raises(ValueError, match="word between"):
        token_relevance(torch.ones(2, 2, 5), torch.ones(2, 2, 5))


WORKED = tensor(
    [
        [0.02, 0.10, 0.31, 0.05],
        [0.44, 0.93, 1.00, 0.27],
        [0.38, 0.81, 0.72, 0.12],
        [0.00, 0.22, 0.17, 0.08],
    ]
)


@pytest.mark.parametrize(
    ("cosine", "black"),
    [
        (0.36, [(0, 0), (3, 0)]),
        (0.90, [(0, 0), (0, 1), (0, 3), (2, 3), (3, 0), (3, 2), (3, 3)]),
        (1.00, [(0, 0), (0, 1), (0, 3), (2, 3), (3, 0), (3, 2), (3, 3)]),
        (0.00, []),
        (-0.10, []),
    ],
)
def test_worked_masks(cosine, black):
    kept = kept_pixels(WORKED, cosine_share(cosine))
    assert [tuple(cell) for cell in (~kept).nonzero().tolist()] == black


def test_no_match_masks_not_one_pixel_of_a_large_image():
    assert kept_pixels(torch.rand(600, 600, generator=torch.manual_seed(0)), 0.0).all()


def test_a_map_of_zeros_masks_nothing():
    assert kept_pixels(torch.zeros(5, 7), 0.5).all()


def test_masking_all_keeps_the_most_relevant_pixel():
    assert kept_pixels(WORKED, 1.0).nonzero().tolist() == [[1, 2]]


def test_worked_shares():
    peaked = tensor([0.05, 0.05, 0.1, 0.6, 0.1, 0.05, 0.03, 0.02], dtype=torch.float64)
    assert entropy_share(peaked) == pytest.approx(0.163417, abs=1e-6)
    assert entropy_share(7 * peaked.view(2, 4)) == pytest.approx(0.163417, abs=1e-6)
    assert entropy_share(torch.ones(8)) == pytest.approx(0, abs=1e-12)
    assert entropy_share(torch.eye(8)[0]) == 0.5
    assert entropy_share(torch.zeros(8)) == entropy_share(torch.ones(1)) == 0
    with pytest.raises(ValueError, match="negative"):
        entropy_share(tensor([-1.0, 2.0]))
    assert [cosine_share(s) for s in (-1, 0, 0.36, 1, 1.0000001)] == [0, 0, 0.18, 0.5, 0.5]


# The map


def test_a_flat_map_stays_flat_to_its_border():
    flat = torch.ones(24, 24, dtype=torch.float64)
    soft = blurred(enlarged(flat, 384))
    torch.testing.assert_close(soft, torch.ones_like(soft), atol=1e-6, rtol=0)


GRID = tensor([[0.1, 0.9, 0.3], [0.0, 0.4, 1.0], [0.2, 0.7, 0.6], [0.5, 0.0, 0.8]])
# scikit-image 0.26 `resize(order=3, mode=..)` and scipy 1.17 `gaussian_filter`, 48 x 48, at
# [::12, ::9]; float64.
BY_OTHERS = [
    [0.003273, 0.189159, 0.773384, 0.901844, 0.392905, 0.110567],
    [0.0, 0.069044, 0.386677, 0.652716, 0.726833, 0.731173],
    [0.022235, 0.102799, 0.398927, 0.679054, 0.805552, 0.835423],
    [0.397201, 0.377995, 0.334321, 0.409233, 0.598399, 0.687498],
]


def test_the_map_equals_splines_and_blur_of_other_libraries():
    actual = spread(GRID.double(), 48)[::12, ::9]
    expected = tensor(BY_OTHERS, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_splines_pass_through_the_middle_of_each_cell():
    """An odd number of pixels per cell puts one on each."""
    grid = stretched(torch.rand(7, 5, generator=torch.manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(enlarged(grid, 35)[2::5, 3::7], grid, atol=1e-6, rtol=0)


def test_a_map_that_says_nothing_is_zero():
    for value in (0.0, 0.3):
        flat = spread(torch.full((24, 24), value))
        assert torch.equal(flat, torch.zeros(384, 384))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_map_is_in_the_unit_interval(dtype):
    values = spread(torch.rand(6, 9, generator=torch.manual_seed(0)).to(dtype), 50)
    assert (values.min(), values.max()) == (0, 1)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_mask_blackens_in_the_images_own_pixels():
    image = photograph(40, 30)
    kept = torch.ones(30, 40, dtype=torch.bool)
    kept[:10, 25:] = False
    out = masked_image(image, kept)
    before, after = np.asarray(image), np.asarray(out)
    assert (out.mode, out.size) == ("RGB", (40, 30))
    assert np.array_equal(after, before * kept.numpy()[..., None])
    assert before[:10, 25:].any()
    assert masked_image(image.convert("L"), kept).mode == "RGB"
    with pytest.raises(ValueError, match="its mask"):
        masked_image(image, kept.T)


def test_refused_relevance():
    with pytest.raises(ValueError, match="masked"):
        Relevance(torch.zeros(2, 2), 1.5)
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        Relevance(torch.zeros(4), 0.5)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            Relevance(torch.full((2, 2), wrong), 0.5)


# BLIP


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (QUESTION, "is there a red cat on the mat?"),
        ('  A "Cat"!  (red;  *two*):\n#1~ and.so, on ', "a cat red two 1 and so, on"),
        (" ".join(f"w{i}" for i in range(70)), " ".join(f"w{i}" for i in range(20, 70))),
    ],
)
def test_questions_are_cleaned_and_keep_their_end(question, text):
    assert cleaned(question) == text


def scores_with(model, first, pixels, **kwargs):
    return model(input_ids=tensor([[first, *IDS, SEP]]), pixel_values=pixels, **kwargs)


def test_the_match_is_read_at_enc_and_the_cosine_at_cls(model, matcher, pixels):
    """Compared with transformers' own two calls."""
    seen = []
    handle = model.itm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        (relevance,) = matcher([photograph()], [QUESTION])
    finally:
        handle.remove()
    with torch.no_grad():
        match = {first: scores_with(model, first, pixels).itm_score for first in (LISTED, CLS)}
        cosine = {
            first: scores_with(model, first, pixels, use_itm_head=False).itm_score.item()
            for first in (LISTED, CLS)
        }
    torch.testing.assert_close(seen[0], match[LISTED], atol=1e-5, rtol=1e-5)
    assert (seen[0] - match[CLS]).abs().max() > 1e-2
    assert cosine[CLS] > 0.01 and abs(cosine[CLS] - cosine[LISTED]) > 1e-2
    assert relevance.masked == pytest.approx(cosine[CLS] / 2, abs=1e-6)


def test_relevance_equals_a_backward_through_the_whole_model(model, matcher, pixels):
    """Kept gradients of the layer's probabilities, everything requiring one; on a copy."""
    copy = blip()
    copy.load_state_dict(model.state_dict())
    kept = []

    def keep(module, args, output):
        output[1].retain_grad()
        kept.append(output[1])

    copy.text_encoder.encoder.layer[LAYER].crossattention.self.register_forward_hook(keep)
    scores_with(copy, LISTED, pixels).itm_score[0, 1].backward()
    attention = kept[0]
    words = attention.grad[0, :, 1:-1, 1:].clamp(min=0) * attention[0, :, 1:-1, 1:]
    grid = words.sum(dim=(0, 1)).view(6, 6).detach()  # a sum: the scale goes in `spread`
    (relevance,) = matcher([photograph(40, 30)], [QUESTION])
    expected = torch.nn.functional.interpolate(
        spread(grid, 48)[None, None], size=(30, 40), mode="bilinear", antialias=True
    )[0, 0]
    torch.testing.assert_close(relevance.values, expected, atol=1e-4, rtol=0)  # float32
    assert expected.std() > 0.1


def test_the_gradient_equals_finite_differences():
    """Of one probability, moved by a hook of the test's own; float64."""
    model = blip().double()
    matcher = BlipMatcher(model, processor(), LAYER)
    generator = torch.manual_seed(0)
    image = torch.randn(1, 37, 32, dtype=torch.float64, generator=generator)
    ids = tensor([[CLS, *IDS, SEP]])
    attention, gradient = matcher._attention(ids, image)
    cross = model.text_encoder.encoder.layer[LAYER].crossattention.self
    head, token, patch, step = 2, 4, 17, 1e-5

    def match(shift):
        def move(module, args, output):
            context, probabilities = output
            values = module.value(image)[0, patch].view(4, 8)[head]
            context = context.clone()
            context[0, token, 8 * head : 8 * head + 8] += shift * values
            return context, probabilities

        handle = cross.register_forward_hook(move)
        paired = ids.clone()
        paired[:, 0] = LISTED
        with torch.no_grad():
            states = model.text_encoder(input_ids=paired, encoder_hidden_states=image)
            handle.remove()
            return model.itm_head(states.last_hidden_state[:, 0])[0, 1].item()

    slope = (match(step) - match(-step)) / (2 * step)
    assert attention.shape == gradient.shape == (4, len(IDS) + 2, 37)
    assert gradient[head, token, patch].item() == pytest.approx(slope, rel=1e-4)
    assert abs(slope) > 1e-4


def test_the_image_is_encoded_once(model, matcher):
    calls = []
    handle = model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        matcher([photograph()], [QUESTION])
    finally:
        handle.remove()
    assert len(calls) == 1


def same(first, second):
    return torch.equal(first.values, second.values) and first.masked == second.masked


def test_rows_do_not_depend_on_their_neighbours(matcher):
    images = [photograph(40, 30), photograph(25, 50, seed=1), photograph(64, 64, seed=2)]
    questions = [QUESTION, "what color?", "is the dog left of the bench and in the picture"]
    together = matcher(images, questions)
    for image, question, relevance in zip(images, questions, together, strict=True):
        assert relevance.values.shape == (image.height, image.width)
        assert same(matcher([image], [question])[0], relevance)
    assert not torch.equal(
        together[0].values, matcher(images[:1], ["what color is the kite"])[0].values
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_caller_gets_the_same_answer(matcher, mode, frozen):
    (expected,) = matcher([photograph()], [QUESTION])
    matcher.model.requires_grad_(not frozen)
    try:
        with mode():
            (relevance,) = matcher([photograph()], [QUESTION])
    finally:
        matcher.model.requires_grad_(True)
    assert same(relevance, expected)
    assert not relevance.values.requires_grad and not relevance.values.is_inference()


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_remains(fails):
    model = blip(dropout=0.5)
    (expected,) = BlipMatcher(model, processor(), LAYER)([photograph()], [QUESTION])
    model.train()
    model.vision_model.eval()
    flags = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    matcher = BlipMatcher(model, processor(), LAYER)
    if fails:
        handle = model.itm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            matcher([photograph()], [QUESTION])
        handle.remove()
    else:
        assert same(matcher([photograph()], [QUESTION])[0], expected)
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0
    assert model.config.to_dict() == config


def test_long_questions_are_read_from_their_end(matcher):
    long = " ".join(["what color is the dog and the kite"] * 40)
    (relevance,) = matcher([photograph()], [f"{long} {QUESTION}"])
    assert relevance.values.std() > 0
    ids = matcher._ids(f"{long} {QUESTION}")
    assert ids.shape == (1, 35)
    assert ids[0, 0] == CLS and ids[0, -1] == SEP
    assert ids[0, -1 - len(IDS) : -1].tolist() == IDS
    assert matcher._ids(QUESTION).tolist() == [[CLS, *IDS, SEP]]
    assert same(relevance, matcher([photograph()], [f"{QUESTION} {long} {QUESTION}"])[0])


def test_where_enc_is_looked_for(matcher):
    unlisted = processor([word if word != "[ENC]" else "[unused]" for word in VOCABULARY])
    assert matcher._enc() == LISTED
    assert BlipMatcher(blip(30524), unlisted, LAYER)._enc() == 30523
    with pytest.raises(ValueError, match=r"\[ENC\]"):
        BlipMatcher(blip(), unlisted, LAYER)


def test_refused_models_and_questions(model, matcher):
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 2"):
        BlipMatcher(model, processor())
    with pytest.raises(ValueError, match="BlipForImageTextRetrieval"):
        BlipMatcher(model.text_encoder, processor(), LAYER)
    with pytest.raises(ValueError, match="words"):
        matcher([photograph()], [" (!) "])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        matcher([photograph()], [QUESTION, QUESTION])


def test_half_precision_answers_alike(matcher):
    (expected,) = matcher([photograph()], [QUESTION])
    model = blip().to(torch.bfloat16)
    (relevance,) = BlipMatcher(model, processor(), LAYER)([photograph()], [QUESTION])
    assert relevance.values.dtype == torch.float32
    assert relevance.masked == pytest.approx(expected.masked, abs=0.02)
    assert (relevance.values - expected.values).abs().mean() < 0.05
