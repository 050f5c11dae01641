"""Where tokens lie: against what processors and models of transformers do with painted images."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import (
    Blip2Config,
    CLIPVisionConfig,
    Idefics2Config,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sightline.vision.token_layout import Layout, Tile, locate

SIZES = [(64, 64), (96, 64), (64, 96), (150, 50), (40, 200), (30, 900)]
PATCH, SIDE = 14, 56  # 4 x 4 patches on a canvas
SQUARE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]
FLOAT32 = dict(atol=1e-5, rtol=1e-5)  # sums of a few products of numbers around 1


def config(**vision):
    return SimpleNamespace(vision_config=SimpleNamespace(patch_size=PATCH, **vision))


# Each family: its processor, its config, and from the processor's output
# - `patches`, `[P, values]`, what the vision tower takes in, in its order;
# - `tokens`, for each of the N tokens the set of patches it is made of;
# - `views`, runs of patches that together show the image once.


def by_patch(canvases):
    """`[n, 3, H, W]` -> `[n * h * w, values]`, as a convolution over patches reads them."""
    x = np.asarray(canvases)
    n, c, height, width = x.shape
    x = x.reshape(n, c, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c * PATCH * PATCH)


def one_canvas(output, size):
    patches = by_patch(np.asarray(output["pixel_values"]).reshape(1, 3, SIDE, SIDE))
    return patches, [{place} for place in range(16)], [range(16)]


def flat_patches(output, size):
    """The merger of Qwen2-VL: `view(-1, 4 * hidden)` of the patches, in their order."""
    patches = np.asarray(output["pixel_values"])
    groups = [set(range(i, i + 4)) for i in range(0, len(patches), 4)]
    return patches, groups, [range(len(patches))]


def packed(family, model_config, size, features):
    with torch.device("meta"):
        model = family(model_config)
    settings = {"vision_feature_select_strategy": "full"}
    if family is LlavaOnevisionModel:
        settings = {"vision_aspect_ratio": model_config.vision_aspect_ratio}
    (tokens,), _ = model.pack_image_features(
        [features], torch.tensor([size[::-1]]), image_newline=torch.tensor([-1.0]), **settings
    )
    return tokens[:, 0]


def any_resolution(family, model_config):
    def read(output, size):
        patches = by_patch(np.asarray(output["pixel_values"])[0])
        places = torch.arange(len(patches), dtype=torch.float32).view(-1, 16, 1)
        tokens = packed(family, model_config, size, places).tolist()
        groups = [{int(place)} if place >= 0 else set() for place in tokens]
        return patches, groups, [range(16), range(16, len(patches))]

    return read


def shuffled(shuffle):
    """Tiles of which each token takes 2 x 2 patches, put together by the model's own code."""

    def read(output, size):
        tiles = np.asarray(output["pixel_values"]).reshape(-1, 3, SIDE, SIDE)
        places = torch.arange(len(tiles) * 16).view(len(tiles), 16, 1)
        groups = [set(token) for token in shuffle(places).reshape(-1, 4).tolist()]
        end = len(tiles) * 16
        views = [range(end - 16), range(end - 16, end)] if len(tiles) > 1 else [range(end)]
        return by_patch(tiles), groups, views

    return read


NEXT = LlavaNextConfig(
    vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, hidden_size=12),
    text_config=LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
    image_grid_pinpoints=PINPOINTS,
)


def onevision(limit):
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=SIDE, patch_size=PATCH, hidden_size=12),
        text_config=Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{limit}",
    )


def shuffle_of_internvl(places):
    return InternVLModel.pixel_shuffle(None, places.view(-1, 4, 4, 1), 0.5)


def shuffle_of_idefics3(places):
    return Idefics3Connector.pixel_shuffle(None, places, 2)


FAMILIES = {
    "crop": (
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        config(),
        one_canvas,
    ),
    "square": (CLIPImageProcessorPil(size=SQUARE, do_center_crop=False), config(), one_canvas),
    "padded": (JanusImageProcessorPil(size=SQUARE, min_size=2), config(), one_canvas),
    "llava-next": (
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        NEXT,
        any_resolution(LlavaNextModel, NEXT),
    ),
    "llava-onevision": (
        LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        onevision(9),
        any_resolution(LlavaOnevisionModel, onevision(9)),
    ),
    "qwen2-vl": (
        Qwen2VLImageProcessorPil(min_pixels=112 * 112, max_pixels=224 * 224),
        config(spatial_merge_size=2),
        flat_patches,
    ),
    "internvl": (
        GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4, crop_to_patches=True),
        config(),
        shuffled(shuffle_of_internvl),
    ),
    "idefics3": (
        Idefics3ImageProcessorPil(
            size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE}
        ),
        config(),
        shuffled(shuffle_of_idefics3),
    ),
}


def part_of_pixels(start, end, length):
    """How much of each pixel lies between two places on an axis."""
    pixel = np.arange(length)
    return (np.minimum(end, pixel + 1) - np.maximum(start, pixel)).clip(0, 1)


def painted(size, box):
    """Dark, with a box of light; at its edges pixels are mixed."""
    left, top, right, bottom = box
    share = np.outer(part_of_pixels(top, bottom, size[1]), part_of_pixels(left, right, size[0]))
    grey = np.round(60 + 140 * share).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def inside(box, size):
    """Share of a box that lies in the image."""
    left, top, right, bottom = box
    width = min(right, size[0]) - max(left, 0)
    height = min(bottom, size[1]) - max(top, 0)
    return max(width, 0) * max(height, 0) / ((right - left) * (bottom - top))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("family", FAMILIES)
def test_paint_on_a_cell_lands_on_the_patches_of_its_token(family, size):
    processor, model_config, read = FAMILIES[family]
    blank = painted(size, (0, 0, 0, 0))
    before, groups, views = read(processor(images=blank), size)
    layout = locate(processor, model_config, blank, len(groups))
    cells = layout.cells().tolist()
    assert [math.isnan(box[0]) for box in cells] == [not group for group in groups]
    for view in views:
        shares = [
            inside(box, size) if group and group <= set(view) else 0.0
            for box, group in zip(cells, groups, strict=True)
        ]
        clear = [token for token, share in enumerate(shares) if share > 0.5 * max(shares)]
        for token in clear[:: max(1, len(clear) // 6)]:
            after, _, _ = read(processor(images=painted(size, cells[token])), size)
            change = np.abs(after - before).sum(axis=1)
            changed = [sum(change[place] for place in group) for group in groups]
            rivals = [other for other, group in enumerate(groups) if group <= set(view)]
            assert max(rivals, key=changed.__getitem__) == token
            # The rest is what bicubic and Lanczos kernels spread; half a cell off would be half.
            assert changed[token] > 0.65 * change[list(view)].sum()


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (150, 50), (40, 200)])
def test_a_grid_that_onevision_makes_smaller_lies_where_its_own_interpolation_looks(size):
    """Patches that carry their place in the image go through the model's own packing."""
    processor, full, read = FAMILIES["llava-onevision"]
    image = Image.new("RGB", size)
    patches, groups, _ = read(processor(images=image), size)
    boxes = locate(processor, full, image, len(groups)).cells()  # as checked with paint
    smaller = onevision(1)
    seen = []
    for axis in (0, 1):
        places = torch.full((len(patches), 1), math.nan)
        for group, box in zip(groups, boxes, strict=True):
            places[list(group)] = (box[axis] + box[axis + 2]) / 2
        seen.append(packed(LlavaOnevisionModel, smaller, size, places.view(-1, 16, 1)))
    layout = locate(processor, smaller, image, len(seen[0]))
    tokens = layout.tiles[1].tokens.flatten()
    assert 16 + len(tokens) < len(boxes)
    for axis in (0, 1):
        middles = layout.cells()[tokens][:, [axis, axis + 2]].mean(dim=1)
        torch.testing.assert_close(middles, seen[axis][tokens], atol=1e-3, rtol=0)  # float32, 200


def whole_image(size, gh, gw):
    tile = Tile(torch.arange(gh * gw).view(gh, gw), (0.0, 0.0, float(size[0]), float(size[1])))
    return Layout(size, gh * gw, (tile,))


def test_pixels_of_a_grid_over_the_whole_image_are_those_of_interpolate():
    values = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    expected = interpolate(values.view(2, 1, 3, 4), (6, 8), mode="bilinear", align_corners=False)
    pixels = whole_image((8, 6), 3, 4).to_pixels(values)
    torch.testing.assert_close(pixels, expected[:, 0], **FLOAT32)


def test_pixels_by_hand():
    """Two cells of 2 pixels: 0 and 1. Centres at 1 and 3; those of pixels at 0.5, 1.5, ..."""
    pixels = whole_image((4, 1), 1, 2).to_pixels(torch.tensor([0, 1]))
    torch.testing.assert_close(pixels, torch.tensor([[0, 0.25, 0.75, 1]]), **FLOAT32)


def test_overlapping_tiles_are_averaged_and_pixels_that_none_reaches_are_0():
    tiles = (
        Tile(torch.tensor([[0]]), (0.0, 0.0, 2.0, 1.0)),
        Tile(torch.tensor([[2]]), (1.0, 0.0, 3.0, 1.0)),
    )
    layout = Layout((4, 1), 4, tiles)
    pixels = layout.to_pixels(torch.tensor([2.0, 100.0, 6.0, 100.0]))
    assert pixels.tolist() == [[2, 4, 6, 0]]
    assert layout.covered().tolist() == [[True, True, True, False]]
    assert layout.cells()[2].tolist() == [1, 0, 3, 1]
    assert layout.cells()[[1, 3]].isnan().all()


def test_a_cell_without_a_token_gives_and_takes_nothing_and_covers_nothing():
    tile = Tile(torch.tensor([[0, 1], [2, -1]]), (0.0, 0.0, 4.0, 4.0))
    layout = Layout((4, 4), 3, (tile,))
    covered = layout.covered()
    assert covered.tolist() == [[True] * 4] * 2 + [[True, True, False, False]] * 2
    torch.testing.assert_close(layout.to_pixels(torch.ones(3)), covered.float(), **FLOAT32)
    assert layout.cells()[2].tolist() == [0, 2, 2, 4]


def test_cells_in_the_padding_lie_outside_the_image_and_are_0():
    processor, model_config, _ = FAMILIES["padded"]
    layout = locate(processor, model_config, Image.new("RGB", (100, 50)), 16)
    assert layout.tiles[0].box == (0, -25, 100, 75)
    assert layout.covered().all()


def test_the_middle_of_640_x_480_goes_through_a_crop_of_336():
    square = {"height": 336, "width": 336}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square)
    layout = locate(processor, config(), Image.new("RGB", (640, 480)), 576)
    # Half a pixel of 640: what the ramp's 8-bit levels leave uncertain is a tenth of that.
    assert layout.tiles[0].box == pytest.approx((80, 0, 560, 480), abs=0.5)
    covered = layout.covered()
    assert covered[:, 80:560].all() and not covered[:, :80].any() and not covered[:, 560:].any()


def test_patches_that_do_not_fill_the_canvas_leave_its_rest_unseen():
    """As SigLIP of 384 pixels in patches of 14: 60 pixels hold 4 patches of 14 and 4 pixels."""
    processor = CLIPImageProcessorPil(size={"height": 60, "width": 60}, do_center_crop=False)
    layout = locate(processor, config(), Image.new("RGB", (120, 120)), 16)
    assert layout.tiles[0].box == (0, 0, 112, 112)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((30, 900), (0, 435, 30, 465)),
        ((900, 30), (435, 0, 465, 30)),
        ((8, 2400), (0, 1196, 8, 1204)),
        ((1, 1), (0, 0, 1, 1)),
        ((4, 4), (0, 0, 4, 4)),
    ],
)
def test_thin_and_tiny_images_through_a_crop(size, box):
    processor, model_config, _ = FAMILIES["crop"]
    layout = locate(processor, model_config, Image.new("RGB", size), 16)
    # The ramp's 8-bit levels on at least 8 pixels: a twentieth of one.
    assert layout.tiles[0].box == pytest.approx(box, abs=0.05)


def test_one_pixel_has_all_tokens():
    for family in ("crop", "square", "padded"):
        processor, model_config, _ = FAMILIES[family]
        layout = locate(processor, model_config, Image.new("RGB", (1, 1)), 16)
        assert layout.tiles[0].box == (0, 0, 1, 1)
        torch.testing.assert_close(layout.to_pixels(torch.ones(16)), torch.ones(1, 1), **FLOAT32)


@pytest.mark.parametrize(
    "model_config", [Blip2Config(), Idefics2Config()], ids=["qformer", "perceiver"]
)
def test_models_that_resample_patches_are_refused(model_config):
    processor, _, _ = FAMILIES["square"]
    with pytest.raises(ValueError, match=r"mixes all of it .* use a model that keeps patches"):
        locate(processor, model_config, Image.new("RGB", (64, 64)), 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_number_of_tokens_is_refused(family):
    processor, model_config, read = FAMILIES[family]
    image = Image.new("RGB", (96, 64))
    _, groups, _ = read(processor(images=image), image.size)
    for count in (0, len(groups) - 1, len(groups) + 1):
        with pytest.raises(ValueError, match=f"{count} tokens do not fit .* Pass the processor"):
            locate(processor, model_config, image, count)


def test_tiles_that_the_config_does_not_know_are_refused():
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=[[168, 168]]
    )
    with pytest.raises(ValueError, match=r"tiles .* makes 9: give both the same"):
        locate(processor, NEXT, Image.new("RGB", (64, 64)), 88)


@pytest.mark.parametrize(
    "change", [np.fliplr, np.flipud, np.rot90, np.transpose], ids=lambda change: change.__name__
)
def test_processors_that_turn_or_mirror_are_refused(change):
    straight = FAMILIES["square"][0]

    def turned(images):
        output = straight(images=images)
        pixels = np.asarray(output["pixel_values"][0])
        return {"pixel_values": [np.stack([change(channel) for channel in pixels])]}

    with pytest.raises(ValueError, match="turns, mirrors or bends"):
        locate(turned, config(), Image.new("RGB", (64, 64)), 16)


def test_patches_in_another_order_than_asked_for_are_refused():
    processor, model_config, _ = FAMILIES["qwen2-vl"]

    def shuffled_patches(images):
        output = processor(images=images)
        order = np.random.default_rng(0).permutation(len(output["pixel_values"]))
        return {**output, "pixel_values": output["pixel_values"][order]}

    shuffled_patches.merge_size = 2
    with pytest.raises(ValueError, match="turns, mirrors or bends"):
        locate(shuffled_patches, model_config, Image.new("RGB", (120, 120)), 16)


def test_unplaceable_outputs_are_refused():
    def flat(images):
        return {"pixel_values": np.zeros((16, 588))}

    def blind(images):
        return {"pixel_values": np.zeros((1, 3, SIDE, SIDE))}

    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=r"images \[.., 3, H, W\] were wanted .* got \[16, 588\]"):
        locate(flat, config(), image, 16)
    with pytest.raises(ValueError, match="does not depend on the image"):
        locate(blind, config(), image, 16)
    with pytest.raises(ValueError, match=r"vision_config.patch_size .* None"):
        locate(FAMILIES["square"][0], SimpleNamespace(), image, 16)


def test_the_size_of_patches_may_be_given_for_both_sides():
    processor, _, _ = FAMILIES["square"]
    both, uneven = (
        SimpleNamespace(vision_config=SimpleNamespace(patch_size=sides))
        for sides in ([14, 14], [14, 28])
    )
    image = Image.new("RGB", (64, 64))
    assert locate(processor, both, image, 16).count == 16
    with pytest.raises(ValueError, match=r"vision_config.patch_size .* \[14, 28\]"):
        locate(processor, uneven, image, 16)


def test_frames_of_a_video_are_refused():
    def filmed(images):
        return {"pixel_values": np.zeros((8, 588)), "image_grid_thw": [[2, 2, 2]]}

    filmed.merge_size = 2
    with pytest.raises(ValueError, match="got 2 frames: pass a still image"):
        locate(filmed, config(spatial_merge_size=2), Image.new("RGB", (64, 64)), 2)


def test_maps_of_another_size_are_refused():
    layout = whole_image((8, 6), 3, 4)
    with pytest.raises(ValueError, match="12 tokens, got values for 11"):
        layout.to_pixels(torch.zeros(11))


class Counting(CLIPImageProcessorPil):
    calls = 0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


def test_images_of_one_size_are_asked_about_once_and_again_under_other_settings():
    processor = Counting(size=SQUARE, do_center_crop=False)
    first = locate(processor, config(), Image.new("RGB", (90, 60)), 16)
    asked = Counting.calls
    assert asked > 0
    assert locate(processor, config(), Image.new("RGB", (90, 60), "red"), 16) is first
    assert Counting.calls == asked
    assert locate(processor, config(), Image.new("RGB", (60, 90)), 16).size == (60, 90)
    # The middle of what is resized to 56 x 84 is 56 x 56: a third of its height is cut off.
    processor.size = {"shortest_edge": SIDE}
    processor.do_center_crop, processor.crop_size = True, SQUARE
    [tile] = locate(processor, config(), Image.new("RGB", (60, 90)), 16).tiles
    assert tile.box == pytest.approx((0, 15, 60, 75), abs=0.1)


def test_a_layout_of_the_image_made_smaller():
    """Halves of an 80 x 40 image stay halves; one that is small enough stays as it is."""
    tokens = torch.tensor([[0, 1]])
    layout = Layout((80, 40), 2, (Tile(tokens, (0.0, 0.0, 80.0, 40.0)),))
    smaller = layout.within(20)
    assert smaller.size == (20, 10)
    assert smaller.cells().tolist() == [[0, 0, 10, 10], [10, 0, 20, 10]]
    assert smaller.to_pixels(torch.tensor([0.0, 1.0])).shape == (10, 20)
    assert layout.within(80).size == (80, 40)
    assert Layout((1000, 2), 2, layout.tiles).within(100).size == (100, 1)
