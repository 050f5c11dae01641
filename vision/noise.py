"""Gaussian noise for images, in whatever layout a model takes their pixels.

The noise of an image depends on the seed and on its own processed pixels alone: not on the other
images of a batch, on the padding that they cause, or on what was decoded before. So an evaluation
draws anew for each image, and draws the same when it is resumed, sorted or batched otherwise.

The generator is seeded with the BLAKE2b hash of the seed and the pixels, rounded to bfloat16. So
float32 and bfloat16 pixels, on any device, get the same noise; float16, which rounds otherwise, has
noise of its own. What is hashed is what a layout tells apart: an image, a video, or each tile or
frame where these are entries of a tensor. Where it also names their row, equal ones are counted,
and each gets noise of its own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from sightline.model_protocol import UnsupportedModelError

# By the kind of pixels: grids of patches, of each image, whose patches are entries of a tensor;
# or side by side in one strip; or padded to the most of any image, with the place of each.
GRIDS = {"image": ("image_grid_thw", "image_grid_hw"), "video": ("video_grid_thw",)}
STRIPS = {"image": "target_sizes", "video": "target_sizes_videos"}
PLACES = {"image": "image_position_ids", "video": "video_position_ids"}
# By name of the pixels: how many entries in a row belong to one image or video.
RUNS = {"pixel_values_local": "num_local_patches", "pixel_values_videos": "num_frames_per_video"}
MASKS = ("pixel_attention_mask", "pixel_mask")
# Frames of a flat patch, by what a vision config calls their number: after or before the colours.
FRAMES = {"temporal_patch_size": 2, "patch_temporal": 1}


def noise_like(
    pixels: Tensor, name: str, given: Mapping[str, Any], vision: Any, seed: int
) -> Tensor:
    """Standard normal noise of the shape of `pixels`, float32, on the CPU; 0 on padding.

    Args:
        name: Of the pixels, as the processor names them.
        given: What came with them: grids, sizes, masks.
        vision: The vision config.
        seed: Of the noise; the pixels are hashed with it.
    """
    pixels = pixels.detach().to("cpu", torch.bfloat16)  # one copy from the device
    kind = "video" if name == "pixel_values_videos" else "image"
    if given.get(STRIPS[kind]) is not None:
        return in_strip(pixels, name, torch.as_tensor(given[STRIPS[kind]], device="cpu"), seed)
    grid = next((given[g] for g in GRIDS[kind] if given.get(g) is not None), None)
    if grid is not None:
        counts = torch.as_tensor(grid, device="cpu").prod(dim=-1).tolist()
        check_total(name, pixels, sum(counts), len(pixels), "patches")
        if pixels.ndim > 2 or kind == "video":
            return torch.cat([drawn(p.shape, seed, p) for p in pixels.split(counts)])
        return torch.cat([of_still(p, vision, seed) for p in pixels.split(counts)])
    if pixels.ndim < 3:
        raise ValueError(
            f"noise must know where an image ends: {name} has shape {tuple(pixels.shape)} and "
            "came without its grid"
        )
    return in_entries(pixels, name, kind, given, seed)


def in_strip(pixels: Tensor, name: str, sizes: Tensor, seed: int) -> Tensor:
    """Noise for `[1, C, P, L * P]`, the patches of all images; `sizes` are rows and columns."""
    widths = [count * pixels.shape[-2] for count in sizes.prod(dim=-1).tolist()]
    check_total(name, pixels, sum(widths), pixels.shape[-1], "columns of pixels")
    return torch.cat([drawn(p.shape, seed, p) for p in pixels.split(widths, dim=-1)], dim=-1)


def check_total(name: str, pixels: Tensor, wanted: int, came: int, what: str) -> None:
    """Raises `ValueError` if the images' sizes are not those of the pixels."""
    if wanted != came:
        raise ValueError(
            f"noise must know where an image ends: its sizes make {wanted} {what}, and {name} of "
            f"shape {tuple(pixels.shape)} holds {came}: pass the processor's output unchanged"
        )


def of_still(patches: Tensor, vision: Any, seed: int) -> Tensor:
    """Noise for one image's flat patches `[n, D]`, the same in every copy of its one frame.

    A still image is repeated over the frames that a patch is deep; independent noise would be
    averaged away there by the patch convolution.
    """
    count, size = patches.shape
    word = next((w for w in FRAMES if getattr(vision, w, None)), None)
    frames = 1 if word is None else getattr(vision, word)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    side = getattr(vision, "patch_size", None)
    if isinstance(side, int) and size == channels * side**2:
        frames = 1
    if word is None or frames == 1:
        return drawn(patches.shape, seed, patches)
    if size % (channels * frames):
        raise UnsupportedModelError(
            f"a patch of {size} numbers is not {channels} colours x {frames} frames, as the vision "
            "config says, so copies of a still image cannot be told: use a contrast without noise"
        )
    axis = frames_axis(patches, channels, frames, FRAMES[word])
    shape = [count, channels, size // (channels * frames)]
    noise = drawn(shape, seed, patches).unsqueeze(axis)
    shape.insert(axis, frames)
    return noise.expand(shape).reshape(count, size)


def frames_axis(patches: Tensor, channels: int, frames: int, usual: int) -> int:
    """Whether frames stand before (1) or after (2) the colours in flat patches `[n, D]`.

    The copies themselves tell; `usual` where they do not (a grey image, frames that differ).
    """
    shapes = {1: (frames, channels, -1), 2: (channels, frames, -1)}
    alike = [
        axis for axis, shape in shapes.items() if are_copies(patches.unflatten(1, shape), axis)
    ]
    return alike[0] if len(alike) == 1 else usual


def are_copies(values: Tensor, axis: int) -> bool:
    return bool((values == values.narrow(axis, 0, 1)).all())


def in_entries(pixels: Tensor, name: str, kind: str, given: Mapping[str, Any], seed: int) -> Tensor:
    """Noise for `[N, C, H, W]`, `[N, n, C, H, W]` (tiles, frames, images of a row) or
    `[N, patches, D]`; no entry's depends on how many others there are."""
    entries = pixels.flatten(0, -4) if pixels.ndim > 4 else pixels
    lengths = [len(entries) // len(pixels)] * len(pixels)
    runs = given.get(RUNS.get(name, ""))
    if runs is not None:
        lengths = torch.as_tensor(runs, device="cpu").flatten().tolist()
        check_total(name, pixels, sum(lengths), len(entries), "entries")
    filled = iter(zip(entries, extents(pixels, kind, given, entries), strict=True))
    noise = torch.zeros(entries.shape, device="cpu")
    place = 0
    for length in lengths:
        equal: Counter[bytes] = Counter()
        for into, (entry, shape) in zip(noise[place : place + length], filled, strict=False):
            extent = tuple(slice(side) for side in shape)
            own = entry[extent]
            into[extent] = drawn(shape, seed, own, equal[raw(own)])
            equal[raw(own)] += 1
        place += length
    return noise.view(pixels.shape)


def extents(
    pixels: Tensor, kind: str, given: Mapping[str, Any], entries: Tensor
) -> Iterator[tuple[int, ...]]:
    """Of each entry the shape of what is no padding, which begins at its first corner."""
    whole = tuple(entries.shape[1:])
    if entries.ndim == 3:
        counts = patch_counts(pixels, kind, given)
        yield from [whole] * len(entries) if counts is None else [(n, whole[1]) for n in counts]
        return
    sides = sides_within(pixels, given)
    if sides is not None:
        yield from [(whole[0], height, width) for height, width in sides]
        return
    # Rows with fewer tiles or images are filled up with zeros, which models know them by.
    filled = entries.flatten(1).any(dim=1)
    padded = pixels.ndim > 4 and bool(filled.any())
    yield from [whole if used or not padded else (0, 0, 0) for used in filled.tolist()]


def patch_counts(pixels: Tensor, kind: str, given: Mapping[str, Any]) -> list[int] | None:
    """Patches of each image in `[N, patches, D]`; None if nothing tells."""
    mask = given.get("pixel_attention_mask")
    if mask is not None and mask.shape == pixels.shape[:2]:
        return mask.long().sum(dim=1).tolist()
    if given.get(PLACES[kind]) is not None:
        return (given[PLACES[kind]] >= 0).all(dim=-1).sum(dim=1).tolist()
    return None


def sides_within(pixels: Tensor, given: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Height and width of images `[..., C, H, W]` padded to the largest; None if nothing tells.

    Some families give the size of the original file as `image_sizes`: it is larger.
    """
    height, width = pixels.shape[-2:]
    for name in MASKS:
        mask = given.get(name)
        if mask is not None and mask.shape == (*pixels.shape[:-3], height, width):
            mask = mask.bool().flatten(0, -3)
            rows, columns = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
            return list(zip(rows.tolist(), columns.tolist(), strict=True))
    sizes = given.get("image_sizes")
    if sizes is None or pixels.ndim != 4 or len(sizes) != len(pixels):
        return None
    sides = [(int(h), int(w)) for h, w in torch.as_tensor(sizes, device="cpu").tolist()]
    return sides if all(h <= height and w <= width for h, w in sides) else None


def drawn(shape: Sequence[int], seed: int, pixels: Tensor, equal: int = 0) -> Tensor:
    """Standard normal numbers that depend on the arguments alone.

    Args:
        pixels: bfloat16, on the CPU.
        equal: How many entries with the same pixels came before in the row.
    """
    return torch.randn(*shape, generator=generator(seed, equal, raw(pixels)), device="cpu")


def generator(seed: int, number: int, content: bytes) -> torch.Generator:
    """On the CPU, seeded with the hash of a seed, of which draw it is, and of an image."""
    digest = blake2b(f"{seed} {number} ".encode() + content, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def raw(pixels: Tensor) -> bytes:
    """The values of a bfloat16 tensor on the CPU, in order, low byte first."""
    return pixels.contiguous().view(torch.int16).numpy().astype("<i2", copy=False).tobytes()
