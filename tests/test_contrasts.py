"""The noise of VCD: its schedule, its layouts, and what it must not depend on."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from noises import own_noise
from torch import tensor

from sightline import VCD, Branch, NoisyImage
from sightline.decoders.contrasts import diffuse

MODEL = SimpleNamespace(
    config=SimpleNamespace(vision_config=SimpleNamespace(temporal_patch_size=2, in_channels=3))
)


def noised(contrast=None, **pixels):
    ids = torch.zeros(1, 1, dtype=torch.long)
    branch = Branch(ids, ids, ids.bool(), pixels=pixels)
    return (contrast or NoisyImage(999))(branch, MODEL).pixels


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [
        (0, 0.999989, 0.004726),
        (100, 0.998293, 0.058406),
        (300, 0.980984, 0.194089),
        (500, 0.863017, 0.505175),
        (700, 0.592677, 0.805440),
        (900, 0.364888, 0.931051),
        (999, 0.285042, 0.958515),
    ],
)
def test_schedule(step, signal, noise):
    """The table of section 2.1: what is left of an image of ones, and of noise of ones."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    six_digits = dict(atol=1e-6, rtol=0)  # float64
    torch.testing.assert_close(diffuse(one, zero, step), one * signal, **six_digits)
    torch.testing.assert_close(diffuse(zero, one, step), one * noise, **six_digits)


@pytest.mark.parametrize(
    ("step", "expected"), [(500, [0.964052, -0.936683]), (999, [0.476745, -1.101036])]
)
def test_worked_example(step, expected):
    pixels = tensor([1.0, -0.5], dtype=torch.float64)
    noise = tensor([0.2, -1.0], dtype=torch.float64)
    wanted = tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(diffuse(pixels, noise, step), wanted, atol=1e-6, rtol=0)


def test_noise_is_standard_normal_and_not_clipped():
    image = noised(pixel_values=torch.zeros(1, 3, 64, 64))["pixel_values"]
    assert abs(float(image.std()) - 0.958515) < 0.03  # 12,288 draws
    assert abs(float(image.mean())) < 0.03
    assert image.abs().max() > 3


def test_a_still_images_two_frames_carry_the_same_noise():
    """Independent noise would be averaged by the patch convolution: 3 dB less of it."""
    patches = torch.zeros(24, 3 * 2 * 14 * 14)
    grid = tensor([[1, 4, 6]])
    still = noised(pixel_values=patches, image_grid_thw=grid)["pixel_values"]
    frames = still.view(24, 3, 2, 196)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    assert not torch.equal(frames[:, 0], frames[:, 1])
    video = noised(pixel_values_videos=patches, video_grid_thw=grid)["pixel_values_videos"]
    frames = video.view(24, 3, 2, 196)
    assert not torch.equal(frames[:, :, 0], frames[:, :, 1])


def test_noise_does_not_depend_on_neighbours():
    flat = torch.zeros(24 + 16, 1176)
    two = noised(pixel_values=flat, image_grid_thw=tensor([[1, 4, 6], [1, 4, 4]]))["pixel_values"]
    one = noised(pixel_values=flat[:16], image_grid_thw=tensor([[1, 4, 4]]))["pixel_values"]
    assert torch.equal(two[24:], one)
    tiles = noised(pixel_values=torch.zeros(2, 5, 3, 8, 8))["pixel_values"]
    fewer = noised(pixel_values=torch.zeros(1, 3, 3, 8, 8))["pixel_values"]
    assert torch.equal(tiles[1, :3], fewer[0])
    assert not torch.equal(tiles[0, 0], tiles[0, 1])
    padded = noised(pixel_values=torch.zeros(2, 3, 16, 16), image_sizes=tensor([[8, 6], [16, 16]]))
    alone = noised(pixel_values=torch.zeros(1, 3, 8, 6), image_sizes=tensor([[8, 6]]))
    assert torch.equal(padded["pixel_values"][:1, :, :8, :6], alone["pixel_values"])


def entries(images):
    return dict(pixel_values=torch.stack(images))


def tiles(images):
    return dict(pixel_values=torch.stack([torch.stack([i, i.flip(-1)]) for i in images]))


def flat(images):
    grid = tensor([[1, 2, 2]] * len(images))
    return dict(pixel_values=torch.cat([i.view(4, 48) for i in images]), image_grid_thw=grid)


def squares(images):
    grid = tensor([[2, 2]] * len(images))
    return dict(pixel_values=torch.cat([i.view(4, 3, 4, 4) for i in images]), image_grid_hw=grid)


def strip(images):
    sizes = tensor([[2, 2]] * len(images))
    return dict(
        pixel_values=torch.cat([i.reshape(1, 3, 4, 16) for i in images], dim=-1), target_sizes=sizes
    )


def videos(images):
    grid = tensor([[2, 1, 2]] * len(images))
    patches = torch.cat([i.view(4, 48) for i in images])
    return dict(pixel_values_videos=patches, video_grid_thw=grid)


def frames(images):
    return dict(pixel_values_videos=torch.stack([i.view(2, 3, 4, 8) for i in images]))


PARTS = {entries: (0, 1), tiles: (0, 1), flat: (0, 4), squares: (0, 4)}
PARTS |= {strip: (-1, 16), videos: (0, 4), frames: (0, 1)}
layouts = pytest.mark.parametrize("layout", PARTS, ids=lambda layout: layout.__name__)


def noise_of(layout, images):
    """Of each image, the noise alone."""
    given = layout(images)
    (name,) = (n for n in given if n.startswith("pixel_values"))
    axis, size = PARTS[layout]
    noisy = noised(**given)[name].double() - 0.285042 * given[name].double()
    return noisy.split(size, dim=axis)


SOME = tuple(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))


@layouts
def test_each_image_has_its_own_noise_in_every_batch_and_order(layout):
    """An evaluation is many draws; batches, order and resuming change none of them."""
    alone = [noise_of(layout, [image])[0] for image in SOME]
    for one, other in permutations(alone, 2):
        assert (one - other).abs().max() > 0.1
    for order in permutations(range(3)):
        together = noise_of(layout, [SOME[place] for place in order])
        for place, noise in zip(order, together, strict=True):
            torch.testing.assert_close(noise, alone[place], atol=1e-6, rtol=0)  # float32


@layouts
def test_bfloat16_pixels_have_the_noise_of_float32(layout):
    """Whether the processor's output was cast before `generate` is no other draw."""
    (whole,), (half,) = (noise_of(layout, [image]) for image in (SOME[1], SOME[1].bfloat16()))
    torch.testing.assert_close(whole, half, atol=0.02, rtol=0)  # bfloat16, below 4


def test_equal_tiles_of_a_row_are_drawn_one_by_one():
    tile = SOME[0]
    got = noised(pixel_values=torch.stack([tile, SOME[1], tile])[None])["pixel_values"][0]
    for entry, image, equal in zip(got, (tile, SOME[1], tile), (0, 0, 1), strict=True):
        noise = own_noise(image.shape, 0, image, equal)
        torch.testing.assert_close(entry, 0.285042 * image + 0.958515 * noise, atol=1e-5, rtol=0)


def test_a_draw_of_the_global_state_can_be_repeated():
    """The contrast of the docstring: noise as the authors draw it."""

    class GlobalNoise:
        needs_pixels = True

        def __call__(self, expert, model):
            return expert.with_pixels(
                lambda name, pixels: diffuse(pixels, torch.randn_like(pixels), 500)
            )

    torch.manual_seed(4)
    got = [noised(GlobalNoise(), pixel_values=image[None])["pixel_values"] for image in SOME[:2]]
    torch.manual_seed(4)
    for noisy, image in zip(got, SOME, strict=False):
        expected = 0.863017 * image[None] + 0.505175 * torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(noisy, expected, atol=1e-5, rtol=0)  # float32


def test_original_sizes_are_not_taken_for_padding():
    """LLaVA-NeXT gives the file's size as `image_sizes`, larger than its pixels."""
    image = noised(pixel_values=torch.zeros(1, 3, 8, 8), image_sizes=tensor([[480, 640]]))
    assert (image["pixel_values"] != 0).all()


def test_flat_pixels_without_a_grid_are_refused():
    with pytest.raises(ValueError, match="without its grid"):
        noised(pixel_values=torch.zeros(24, 1176))


def test_seed_decides_and_the_global_state_is_left_alone():
    zeros = torch.zeros(1, 3, 8, 8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = noised(NoisyImage(500, seed=1), pixel_values=zeros)["pixel_values"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noised(NoisyImage(500, seed=1), pixel_values=zeros)["pixel_values"], first)
    assert not torch.equal(
        noised(NoisyImage(500, seed=2), pixel_values=zeros)["pixel_values"], first
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_is_drawn_in_float32_and_cast(dtype):
    pixels = torch.randn(1, 3, 8, 8).to(dtype)
    exact = noised(pixel_values=pixels.float())["pixel_values"]
    half = noised(pixel_values=pixels)["pixel_values"]
    assert half.dtype == dtype
    assert torch.equal(half, exact.to(dtype))


def test_companions_of_pixels_are_kept():
    pixels = noised(pixel_values=torch.zeros(24, 1176), image_grid_thw=tensor([[1, 4, 6]]))
    assert torch.equal(pixels["image_grid_thw"], tensor([[1, 4, 6]]))


def test_presets():
    assert VCD() == VCD(alpha=1.0, beta=0.1, noise_step=500, seed=0)
    assert VCD.pope_paper() == VCD(alpha=1.0, beta=0.1, noise_step=999)
    assert VCD.pope_script() == VCD(alpha=1.0, beta=0.2, noise_step=500)
