"""Prompts with videos, for every family whose model encodes them."""

import math
from contextlib import nullcontext

import pytest
import torch
import transformers
from methods import METHODS
from models import BOS, EOS, IMAGE, PAD, VIDEO, VISION_END, VISION_START
from neutral_parts import with_all_branches
from noises import own_noise
from oracles import Seen, image_gain, oracle_attention, sparse
from packaging.version import Version
from tiny_families import Tiny, by_family, families
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)
from videos import RECORDS, Watcher

from sightline import PAI, VCD, VDD, VASparse

# In so small a vocabulary words are as close to the image token as markers.
pytestmark = pytest.mark.filterwarnings("ignore:the image is taken out")

FIRST = [BOS, 8, 9, VIDEO, 20, 21, 22]
OTHER = [BOS, VIDEO, 12, 13]
BOTH = [BOS, IMAGE, 8, VIDEO, 9]
VIDEOS = [FIRST, OTHER]
MIXED = [FIRST, [BOS, IMAGE, 12, 13], BOTH]
STEPS = 3
# A full forward of such an answer would end early, hide a token, or ask for an image.
UNSAID = [PAD, EOS, IMAGE, VIDEO, VISION_START, VISION_END]
STRONG = {name: METHODS[name] for name in ("vdd", "vcd", "pai", "vasparse")}
RELEASE = f"transformers {transformers.__version__}"
IS_OLDER = Version(transformers.__version__) < Version("5.23")
TOLERANCE = dict(atol=1e-3, rtol=1e-3)  # float32, N x B rows and padding against one row
method = pytest.mark.parametrize("method", STRONG.values(), ids=STRONG)


@pytest.fixture(scope="module", params=by_family(RECORDS))
def watcher(request):
    name = request.param
    reason = RECORDS[name].reason or unavailable(name)
    if reason:
        pytest.skip(reason)
    tiny = Tiny.of(name)
    if IS_OLDER and "video" not in tiny.model.input_modalities:
        pytest.skip(f"{RELEASE} does not say that it takes videos")
    return Watcher(tiny, RECORDS[name])


def unavailable(name):
    """Why there is no model of it, in an older release than the records are written for."""
    if IS_OLDER and name not in families():
        return f"{RELEASE} does not have it"
    if IS_OLDER and RECORDS[name].since:
        return f"{RELEASE} reads its videos otherwise than {RECORDS[name].since}"
    return families()[name].why_untested


@pytest.fixture(scope="module")
def rows(watcher):
    """A video, an image and both in one prompt, or two videos where these do not go together."""
    return VIDEOS if watcher.clips.alone else MIXED


def generate(watcher, rows, **asked):
    torch.manual_seed(1)
    asked = dict(max_new_tokens=STEPS, do_sample=False, suppress_tokens=UNSAID) | asked
    return watcher.model.generate(**watcher.inputs(rows), **asked)


def described(watcher, rows, decoder, **asked):
    asked = dict(output_scores=True, output_logits=True, return_dict_in_generate=True, **asked)
    return generate(watcher, rows, custom_generate=decoder, **asked)


@torch.no_grad()
def full_forward(watcher, row, answer, edit=None):
    """Last logits `[V]` of one row and its answer by themselves; `edit` changes the videos."""
    inputs = {**watcher.inputs([row], answer), **watcher.seen([row])}
    if edit is not None:
        inputs["pixel_values_videos"] = edit(inputs["pixel_values_videos"])
    return watcher.model(**inputs).logits[0, -1]


def test_every_family_that_encodes_videos_has_a_record():
    taking = set()
    for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        kinds = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config], MODEL_MAPPING.get(config, None)]
        if any(hasattr(kind, "get_video_features") for kind in kinds):
            taking.add(config.model_type)
    assert taking <= set(RECORDS)


@pytest.fixture(scope="module", params=[1, 3], ids=["greedy", "3 beams"])
def plain(watcher, rows, request):
    """What is asked, and what is answered without a decoder."""
    if request.param > 1 and watcher.clips.no_beams:
        pytest.skip(watcher.clips.no_beams)
    asked = dict(num_beams=request.param)
    return asked, generate(watcher, rows, **asked)


@method
def test_neutral_settings_equal_generate(watcher, rows, plain, method):
    asked, tokens = plain
    if asked["num_beams"] == 1:
        neutral = generate(watcher, rows, custom_generate=method.neutral)
        assert torch.equal(neutral, tokens)
    with refused_if_edited(watcher, method):
        present = generate(watcher, rows, custom_generate=with_all_branches(method), **asked)
        assert torch.equal(present, tokens)


def check_contrast(watcher, rows, decoder, amateur):
    """Every step of every row, `amateur(row, answer)` by itself: `alpha=1.5`, `beta=0.05`."""
    output = described(watcher, rows, decoder)
    for index, row in enumerate(rows):
        said = output.sequences[index, -STEPS:].tolist()
        for step in range(STEPS):
            expert = full_forward(watcher, row, said[:step])
            other = amateur(row, said[:step])
            branches = output.branch_logits[step][:, index]
            torch.testing.assert_close(branches, torch.stack([expert, other]), **TOLERANCE)
            expected = 2.5 * expert.double() - 1.5 * other.double()
            expert[UNSAID] = -math.inf
            expected[expert < expert.max() + math.log(0.05)] = -math.inf
            scores = output.scores[step][index].double()
            torch.testing.assert_close(scores, expected, atol=5e-3, rtol=1e-3)


def test_vdd_subtracts_what_is_said_without_the_video(watcher, rows):
    def blind(row, answer):
        return full_forward(watcher, watcher.without_videos(row), answer)

    decoder = VDD(alpha=1.5, beta=0.05, markers=watcher.clips.markers)
    check_contrast(watcher, rows, decoder, blind)


def test_vcd_subtracts_what_is_said_of_noisy_frames(watcher):
    """Step 700 of the schedule. The noise of a video, or of what comes as an image of its own, is
    one draw, which the seed and its pixels decide: every frame in it has its own."""

    def noised(pixels):
        count, axis = watcher.clips.pieces
        pieces = pixels.chunk(count, axis)
        noises = [own_noise(piece.shape, 3, piece) for piece in pieces]
        noisy = [0.592677 * p + 0.805440 * n for p, n in zip(pieces, noises, strict=True)]
        return torch.cat(noisy, axis)

    def noisy(row, answer):
        return full_forward(watcher, row, answer, noised)

    check_contrast(watcher, VIDEOS, VCD(alpha=1.5, beta=0.05, noise_step=700, seed=3), noisy)


@pytest.mark.parametrize("name", ["vcd", "pai", "vasparse"])
def test_a_row_does_not_depend_on_its_neighbours(watcher, rows, name):
    strong = STRONG[name].strong
    with refused_if_edited(watcher, STRONG[name]):
        *_, together = generate(watcher, rows, custom_generate=strong)
        [alone] = generate(watcher, rows[-1:], custom_generate=strong)
        assert torch.equal(together[-STEPS:], alone[-STEPS:])


def test_attention_to_videos_is_strengthened(watcher):
    """In the first edited layer, scores of a video's keys rise and all others stay."""
    if watcher.clips.no_edits:
        pytest.skip(watcher.clips.no_edits)
    whole = full_layers(watcher.model)
    first = whole[0] if whole else 0
    looks = dict(output_image_attention=(first, first + 1)) if whole else {}
    weak, strong = (
        described(watcher, VIDEOS, PAI(alpha, gamma=1.0, layers=(first, 3)), **looks)
        for alpha in (0.0, 3.0)
    )
    assert (strong.logits[0] - weak.logits[0]).abs().amax() > 1e-3
    if whole:
        ids = watcher.inputs(VIDEOS)["input_ids"]
        assert torch.equal(strong.image_mask, ids == watcher.clips.token)
        assert (strong.image_attention[0].sum(-1) > weak.image_attention[0].sum(-1)).all()


def full_layers(model):
    """Indices of the layers that see every key."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [index for index, kind in enumerate(kinds) if kind == "full_attention"]


def refused_if_edited(watcher, method):
    """Expects a refusal where the method edits what the model does not let it."""
    recipe, reasons = method.strong.recipe(), []
    if recipe.attention_edits and watcher.clips.no_edits:
        reasons.append(watcher.clips.no_edits)
    depth = watcher.model.config.get_text_config(decoder=True).num_hidden_layers
    if recipe.cache_evictions and len(full_layers(watcher.model)) < depth:
        reasons += ["keys can only leave", "do not keep every key"]
    return pytest.raises(ValueError, match="|".join(reasons)) if reasons else nullcontext()


# Two families against attention written out


@pytest.fixture(scope="module", params=["llava_onevision", "qwen3_vl"])
def shown(request):
    return Watcher(Tiny.of(request.param), RECORDS[request.param])


@torch.no_grad()
def oracle_logits(watcher, row, answer, oracle):
    """Last logits `[V]` of one row and its answer, whose text model's attention is the oracle's."""
    inputs = {**watcher.inputs([row], answer), **watcher.seen([row])}
    ids = inputs["input_ids"]
    prompt = ids.shape[1] - len(answer)
    seen = Seen((ids[0] == VIDEO) | (ids[0] == IMAGE), prompt, oracle)
    with oracle_attention(watcher.model):
        shorter = range(prompt, ids.shape[1]) if seen.needs_shorter else ()
        for end in shorter:
            cut = {k: v[:, :end] for k, v in inputs.items() if v.shape == ids.shape}
            watcher.model(**{**inputs, **cut}, oracle=seen)
        return watcher.model(**inputs, oracle=seen).logits[0, -1]


@pytest.mark.parametrize(
    ("decoder", "oracle"),
    [
        (PAI(alpha=1.5, gamma=1.0, layers=(1, 3)), image_gain(alpha=1.5, first=1)),
        (
            VASparse(alpha=0, beta=0, keep=0.6, every=3, weight=0.9, sink=0.7),
            sparse(keep=0.6, every=3, weight=0.9, sink=0.7),
        ),
    ],
    ids=["pai", "vasparse"],
)
def test_edited_attention_is_the_oracles(shown, decoder, oracle):
    steps = 7  # two of VASparse's cache evictions
    output = described(shown, [FIRST, BOTH], decoder, max_new_tokens=steps)
    for index, row in enumerate([FIRST, BOTH]):
        said = output.sequences[index, -steps:].tolist()
        for step in range(steps):
            expected = oracle_logits(shown, row, said[:step], oracle)
            torch.testing.assert_close(output.logits[step][index], expected, **TOLERANCE)


# Frames that come as images


@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_frames_may_come_as_images(name):
    """A processor without `pixel_values_videos`: every frame is an image of the prompt."""
    tiny = Tiny.of(name)
    marked = [VISION_START, IMAGE, VISION_END]
    rows = [[BOS, 8, *[30, *marked] * 3, 20], [BOS, *marked, 12]]
    asked = dict(max_new_tokens=1, do_sample=False, suppress_tokens=UNSAID)
    asked |= dict(output_logits=True, return_dict_in_generate=True)
    inputs = tiny.inputs(rows)
    plain = tiny.model.generate(**inputs, **asked)
    for method in STRONG.values():
        present = tiny.model.generate(**inputs, custom_generate=with_all_branches(method), **asked)
        assert torch.equal(present.sequences, plain.sequences)
    decoder = VDD(markers=(VISION_START, VISION_END))
    output = tiny.model.generate(**inputs, custom_generate=decoder, **asked)
    for index, row in enumerate(rows):
        blind = tiny.inputs([[t for t in row if t not in marked]])
        with torch.no_grad():
            expected = tiny.model(**blind).logits[0, -1]
        torch.testing.assert_close(output.branch_logits[0][1, index], expected, **TOLERANCE)
