"""The noise of VCD: its schedule, its layouts, and what it must not depend on."""

from types import SimpleNamespace

import pytest
import torch
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
    """The table of section 2.1: what is left of a picture of ones, and of noise of ones."""
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
    picture = noised(pixel_values=torch.zeros(1, 3, 64, 64))["pixel_values"]
    assert abs(float(picture.std()) - 0.958515) < 0.03  # 12,288 draws
    assert abs(float(picture.mean())) < 0.03
    assert picture.abs().max() > 3


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


def test_original_sizes_are_not_taken_for_padding():
    """LLaVA-NeXT gives the file's size as `image_sizes`, larger than its pixels."""
    picture = noised(pixel_values=torch.zeros(1, 3, 8, 8), image_sizes=tensor([[480, 640]]))
    assert (picture["pixel_values"] != 0).all()


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
