"""From image tokens to pixels of the image as it was given, and back.

Where a token lies is asked of the processor: it is handed images of the same size whose colours
tell their own coordinates, so crops, resizes, padding and tiles need no rules here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.compat import (
    tile_grid,
    without_padding,
)
from sightline.model_protocol import UnsupportedModelError
from sightline.vision.processor_call import processed
from sightline.weak_lru import Memory

# Grey levels that tell image from padding. Not 0: transformers takes all zeros for rescaled.
DARK, LIGHT = 64, 192
# Pixels at the ends of a ramp that resampling bends.
BENT = 2

# Configs that name one of these mix all patches into each token.
RESAMPLERS = (
    "qformer_config",
    "perceiver_config",
    "latent_query_num",
    "projector_patch_to_query_dict",
)

READ = ("image_grid_pinpoints", "vision_aspect_ratio")
READ_OF_VISION = ("patch_size", "image_size", "spatial_merge_size")

REMEMBERED = 256  # layouts that are kept, for each image processor


@dataclass(frozen=True)
class Tile:
    """A grid of tokens over a part of the image.

    Args:
        tokens: `[gh, gw]` long, the image's token that shows each cell, -1 where none does.
        box: Left, top, right, bottom, in pixels; outside the image where it was padded.
    """

    tokens: Tensor
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Where an image's tokens lie in it.

    Args:
        size: Width and height, in pixels.
        count: N, tokens of the image; those that no tile names (ends of rows) have no place.
        tiles: Each token is in one at most; tiles may overlap.
    """

    size: tuple[int, int]
    count: int
    tiles: tuple[Tile, ...]

    def to_pixels(self, values: Tensor) -> Tensor:
        """`[.., N]` -> `[.., height, width]` float32: mean of the tiles over a pixel, 0 under none.

        Within a tile bilinear between the centres of cells, and constant beyond the outermost, as
        `interpolate(mode="bilinear", align_corners=False)` has it at the centres of pixels.
        """
        self._check(values.shape[-1])
        values = values.float()
        total = values.new_zeros(*values.shape[:-1], *self.size[::-1])
        reached = values.new_zeros(self.size[::-1])
        for tile in self.tiles:
            rows, columns = (mix.to(values) for mix in _mixes(tile, self.size))
            tokens = tile.tokens.to(values.device)
            has_token = (tokens >= 0).to(values)
            share = rows @ has_token @ columns.mT
            covers = self._covers(tile).to(values)
            cells = values[..., tokens.clamp(min=0)] * has_token
            total += covers * (rows @ cells @ columns.mT) / share.where(share > 0, 1)
            reached += covers
        return total / reached.clamp(min=1)

    def within(self, side: int) -> "Layout":
        """The same tokens in the image made smaller, to at most `side` pixels a side."""
        width, height = self.size
        share = min(1.0, side / max(width, height))
        size = (max(1, round(width * share)), max(1, round(height * share)))
        across, down = size[0] / width, size[1] / height
        tiles = [
            replace(tile, box=(left * across, top * down, right * across, bottom * down))
            for tile in self.tiles
            for left, top, right, bottom in [tile.box]
        ]
        return replace(self, size=size, tiles=tuple(tiles))

    def covered(self) -> Tensor:
        """`[height, width]` bool: pixels whose centre lies in some token's cell."""
        reached = torch.zeros(self.size[::-1], dtype=torch.bool, device="cpu")
        for tile in self.tiles:
            reached |= self._covers(tile)
        return reached

    def cells(self) -> Tensor:
        """`[N, 4]` float32: left, top, right, bottom of each token; NaN for those without place."""
        boxes = torch.full((self.count, 4), math.nan, device="cpu")
        for tile in self.tiles:
            ys, xs = (edges.float() for edges in _edges(tile))
            left, right = (x.expand_as(tile.tokens) for x in (xs[:-1], xs[1:]))
            top, bottom = (y[:, None].expand_as(tile.tokens) for y in (ys[:-1], ys[1:]))
            has_token = tile.tokens >= 0
            grid = torch.stack([left, top, right, bottom], dim=-1)
            boxes[tile.tokens[has_token]] = grid[has_token]
        return boxes

    def _covers(self, tile: Tile) -> Tensor:
        """`[height, width]` bool."""
        rows, columns = _members(tile, self.size)
        return rows @ (tile.tokens >= 0).float() @ columns.mT > 0

    def _check(self, count: int) -> None:
        if count != self.count:
            raise ValueError(
                f"the image has {self.count} tokens, got values for {count}: pass one value for "
                "each, those at the ends of rows included"
            )


LAYOUTS: Memory[str, Layout] = Memory(REMEMBERED)
"""Those that are known, by image processor."""


def locate(
    processor: Any,
    config: Any,
    image: Image.Image,
    tokens: int,
    arguments: Mapping[str, Any] | None = None,
) -> Layout:
    """Where the tokens of an image lie in it, by what the processor makes of its size.

    An axis of fewer than 5 pixels, or of which fewer than 3 come out, cannot be asked about and is
    taken to be shown whole. Edges are exact where no crop is, else to a twentieth of a pixel, of
    the image or of what the processor makes, whichever is larger. Images of one size are asked
    about once.

    Args:
        processor: Of the model, or its image processor, with the settings that it is used with.
        config: The model's.
        image: Sent alone in its prompt; only its size is used.
        tokens: N, features that the model has of the image.
        arguments: Of the processor's call that the image was sent with.

    Raises:
        ValueError: The tokens have no place in the image, or are laid out in a way that is not
            known here.
    """
    for name in RESAMPLERS:
        if getattr(config, name, None) is not None:
            raise UnsupportedModelError(
                f"tokens were to be placed in the image, but this model mixes all of it into "
                f"each of its {tokens} (its config has {name}): use a model that keeps patches"
            )
    image_processor = getattr(processor, "image_processor", processor)
    given = dict(arguments or {})
    # All that the answer depends on: settings may be changed between calls.
    settings = (vars(image_processor), _settings(processor), given)
    key = repr((settings, _read_of(config), image.size, tokens))

    def found(missing: list[str]) -> list[Layout]:
        return [_located(processor, given, config, image.size, tokens)]

    (layout,) = LAYOUTS.recall(image_processor, [key], found)
    return layout


def _read_of(config: Any) -> list[Any]:
    """What of a model's config decides where its tokens lie."""
    vision = getattr(config, "vision_config", None)
    return [
        *(getattr(config, name, None) for name in READ),
        *(getattr(vision, name, None) for name in READ_OF_VISION),
    ]


def _settings(processor: Any) -> dict[str, Any]:
    """What of a processor's own settings may decide what it makes of an image."""
    plain = (bool, int, float, str, list, tuple, dict)
    return {name: value for name, value in vars(processor).items() if isinstance(value, plain)}


def _located(
    processor: Any, arguments: dict[str, Any], config: Any, size: tuple[int, int], tokens: int
) -> Layout:
    patch = _patch_size(config)
    tiled = getattr(config, "image_grid_pinpoints", None) is not None
    mosaic = _mosaic_shape(config, size) if tiled else None
    process = _processing(processor, arguments, patch, mosaic)
    grids = _kept_grids(config, mosaic, size, tokens) if mosaic else None
    flat = [process(np.full((*size[::-1], 3), grey, np.uint8)) for grey in (DARK, LIGHT)]
    shown = _shown(*flat)
    if grids is None:
        merge = getattr(config.vision_config, "spatial_merge_size", None)
        grids = _plain_grids([s.shape for s in shown], patch, merge, tokens)
    if len(grids) != len(shown):
        _unplaced(tokens, f"the processor made {len(shown)} images where {len(grids)} were due")
    xs, ys = (_axes(process, size, axis, flat, shown) for axis in (1, 0))
    tiles = [
        Tile(
            grid.tokens,
            (
                x.at(grid.left),
                y.at(grid.top),
                x.at(grid.left + grid.cell[1] * grid.tokens.shape[1]),
                y.at(grid.top + grid.cell[0] * grid.tokens.shape[0]),
            ),
        )
        for grid, x, y in zip(grids, xs, ys, strict=True)
        if grid.tokens.numel()
    ]
    return Layout(size, tokens, tuple(tiles))


def _edges(tile: Tile) -> list[Tensor]:
    """Where cells meet: `[gh + 1]` and `[gw + 1]` float64."""
    left, top, right, bottom = tile.box
    gh, gw = tile.tokens.shape
    return [
        torch.linspace(start, end, count + 1, dtype=torch.float64, device="cpu")
        for start, end, count in ((top, bottom, gh), (left, right, gw))
    ]


def _centres(tile: Tile, size: tuple[int, int]) -> list[tuple[Tensor, int]]:
    """Of the image's pixels, in cells of the tile from its edge; with the number of cells."""
    scaled = []
    for edges, length in zip(_edges(tile), size[::-1], strict=True):
        count, extent = len(edges) - 1, edges[-1] - edges[0]
        centres = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
        scaled.append(((centres - edges[0]) / extent * count, count))
    return scaled


def _mixes(tile: Tile, size: tuple[int, int]) -> list[Tensor]:
    """What each cell gives to each pixel, `[height, gh]` and `[width, gw]`."""
    mixes = []
    for centres, count in _centres(tile, size):
        place = (centres - 0.5).clamp(0, count - 1)[:, None]
        mixes.append((1 - (place - torch.arange(count, device="cpu")).abs()).clamp(min=0).float())
    return mixes


def _members(tile: Tile, size: tuple[int, int]) -> list[Tensor]:
    """Whether each pixel's centre is in each cell, `[height, gh]` and `[width, gw]`, 0 or 1."""
    return [
        (centres.floor()[:, None] == torch.arange(count, device="cpu")).float()
        for centres, count in _centres(tile, size)
    ]


@dataclass(frozen=True)
class _Grid:
    """Tokens `[gh, gw]` in cells of (height, width) on a canvas, from its pixel (left, top) on."""

    tokens: Tensor
    cell: tuple[float, float]
    left: float = 0.0
    top: float = 0.0


def _plain_grids(
    shapes: list[tuple[int, ...]], patch: int, merge: int | None, tokens: int
) -> list[_Grid]:
    """Each canvas `[H, W]` in rows, one after the other, with `merge` x `merge` patches a token."""
    patches = [(height // patch, width // patch) for height, width in shapes]
    total = sum(h * w for h, w in patches)
    if merge is None:
        merge = math.isqrt(total // tokens) if tokens else 0
    fits = merge > 0 and all(h % merge == w % merge == 0 for h, w in patches)
    if not fits or total != tokens * merge**2:
        made = ", ".join(f"{h} x {w}" for h, w in patches)
        _unplaced(tokens, f"the processor's output has {made} patches")
    grids, first = [], 0
    for h, w in ((h // merge, w // merge) for h, w in patches):
        grids.append(
            _Grid(torch.arange(first, first + h * w, device="cpu").view(h, w), (patch * merge,) * 2)
        )
        first += h * w
    return grids


def _kept_grids(
    config: Any, mosaic: tuple[int, int], size: tuple[int, int], tokens: int
) -> list[_Grid]:
    """The whole image, then the mosaic of tiles without its padded rows, a token ending each row.

    As `pack_image_features` of LLaVA-NeXT and LLaVA-OneVision; the latter makes large grids
    smaller.
    """
    patch = _patch_size(config)
    side = config.vision_config.image_size // patch
    patches = torch.arange(mosaic[0] * mosaic[1] * side**2, device="cpu").view(
        1, mosaic[0] * side, -1
    )
    kept = without_padding(patches, size[::-1])[0]
    height, width = kept.shape
    first = int(kept[0, 0]) if kept.numel() else 0
    top, left = divmod(first, patches.shape[-1])
    rows, columns = height, width
    limit = getattr(config, "vision_aspect_ratio", None)
    if limit is not None:
        ratio = math.sqrt(height * width / (int(limit.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:
            rows, columns = int(height // ratio), int(width // ratio)
    whole = torch.arange(side**2, device="cpu").view(side, side)
    if tokens != side**2 + rows * (columns + 1):
        _unplaced(
            tokens,
            f"a whole image of {side} x {side} and tiles of {rows} x {columns}, a token after "
            f"each row, are {side**2 + rows * (columns + 1)}",
        )
    lines = torch.arange(side**2, tokens, device="cpu").view(rows, columns + 1)[:, :-1]
    cell = (patch * height / max(rows, 1), patch * width / max(columns, 1))
    return [_Grid(whole, (patch, patch)), _Grid(lines, cell, left * patch, top * patch)]


def _mosaic_shape(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return tile_grid(size[::-1], config.image_grid_pinpoints, config.vision_config.image_size)


def _patch_size(config: Any) -> int:
    """Pixels along one side of a patch of the vision tower."""
    patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
    if isinstance(patch, list | tuple) and len(set(patch)) == 1:
        patch = patch[0]
    if not isinstance(patch, int):
        raise UnsupportedModelError(
            "the vision tower's patches were wanted, as vision_config.patch_size of the model's "
            f"config, and that is {patch}: where its tokens lie is not known here"
        )
    return patch


def _unplaced(tokens: int, reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the image's {tokens} tokens do not fit what the processor makes of its size: {reason}. "
        "Pass the processor with the settings that the image was sent with, alone in its prompt; "
        "a model that resamples its patches has no place for its tokens"
    )


@dataclass(frozen=True)
class _Axis:
    """A canvas's axis on the image's."""

    origin: float
    scale: float

    def at(self, place: float) -> float:
        return float(self.origin + self.scale * place)


Process = Callable[[np.ndarray], list[np.ndarray]]


def _processing(
    processor: Any, arguments: dict[str, Any], patch: int, mosaic: tuple[int, int] | None
) -> Process:
    """`[height, width, 3]` uint8 -> canvases `[C, H, W]`, as the processor is used in a prompt."""

    def process(pixels: np.ndarray) -> list[np.ndarray]:
        output = processed(processor, [[Image.fromarray(pixels)]], arguments)
        if "image_grid_thw" in output:
            grid = np.asarray(output["image_grid_thw"]).reshape(3)
            rows = np.asarray(output["pixel_values"])
            merge = getattr(processor, "image_processor", processor).merge_size
            return [_assemble(rows, grid, patch, merge)]
        canvases = _canvases(output["pixel_values"])
        if mosaic is None:
            return canvases
        whole, *tiles = canvases
        if len(tiles) != mosaic[0] * mosaic[1]:
            raise UnsupportedModelError(
                f"the model's config has {mosaic[0]} x {mosaic[1]} tiles for this image, and its "
                f"processor makes {len(tiles)}: give both the same image_grid_pinpoints"
            )
        lines = [tiles[start : start + mosaic[1]] for start in range(0, len(tiles), mosaic[1])]
        return [whole, np.block(lines)]

    return process


def _canvases(values: Any) -> list[np.ndarray]:
    """Each `[C, H, W]` of arrays or lists nested in any way."""
    if isinstance(values, list | tuple):
        return [canvas for value in values for canvas in _canvases(value)]
    array = np.asarray(values.float() if isinstance(values, Tensor) else values)
    if array.ndim < 3 or array.shape[-3] != 3:
        raise UnsupportedModelError(
            "images [.., 3, H, W] were wanted of the processor, or patches with their "
            f"image_grid_thw, got {list(array.shape)}: where its tokens lie is not known here"
        )
    return list(array.reshape(-1, *array.shape[-3:]))


def _assemble(rows: np.ndarray, grid: np.ndarray, patch: int, merge: int) -> np.ndarray:
    """`[h * w, C * T * P * P]`, patches of a token one after the other, -> `[C * T, H, W]`."""
    frames, h, w = (int(count) for count in grid)
    if frames != 1:
        raise ValueError(f"one image was wanted, got {frames} frames: pass a still image")
    patches = rows.reshape(h // merge, w // merge, merge, merge, -1, patch, patch)
    return patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(-1, h * patch, w * patch)


def _shown(dark: list[np.ndarray], light: list[np.ndarray]) -> list[np.ndarray]:
    """Of each canvas `[C, H, W]`, where `[H, W]` the image is and not padding."""
    gaps = [np.abs(b - a).max(axis=0) for a, b in zip(dark, light, strict=True)]
    if not all(gap.any() for gap in gaps):
        raise UnsupportedModelError(
            "a part of what the processor makes does not depend on the image at all (padding "
            "only, or normalised by the image itself): where its tokens lie cannot be asked"
        )
    return [gap > gap.max() / 2 for gap in gaps]


def _axes(
    process: Process,
    size: tuple[int, int],
    axis: int,
    flat: list[list[np.ndarray]],
    shown: list[np.ndarray],
) -> list[_Axis]:
    """Where each canvas's axis (0: downwards, 1: to the right) lies on the image's.

    A ramp has 255 steps, so where little of the image is shown a second ramp spans that alone.
    """
    length = size[::-1][axis]
    bounds = (0.0, float(length))
    while True:
        probe = process(_ramp(size, axis, bounds))
        places = []
        for low, high, seen, inside in zip(*flat, probe, shown, strict=True):
            levels = (seen - low) / np.where(high == low, np.inf, high - low)
            levels = (levels * (LIGHT - DARK) + DARK).mean(axis=0) / 255
            lines = levels if axis == 1 else levels.T
            inside = inside if axis == 1 else inside.T
            places.append((bounds[0] + lines * (bounds[1] - bounds[0]), inside))
        margin = 2 * BENT + 2 * (bounds[1] - bounds[0]) / 255
        seen = [place[inside] for place, inside in places]
        inner = (
            max(0.0, math.floor(min(s.min() for s in seen) - margin)),
            min(float(length), math.ceil(max(s.max() for s in seen) + margin)),
        )
        if inner[1] - inner[0] > (bounds[1] - bounds[0]) / 2:
            return [_fit(place, inside, bounds, length) for place, inside in places]
        bounds = inner


def _ramp(size: tuple[int, int], axis: int, bounds: tuple[float, float]) -> np.ndarray:
    """`[height, width, 3]` uint8, from black to white along `axis` within bounds."""
    centres = np.arange(size[::-1][axis]) + 0.5
    levels = ((centres - bounds[0]) / (bounds[1] - bounds[0])).clip(0, 1) * 255
    line = np.round(levels).astype(np.uint8)[:, None]
    line = line[None] if axis == 1 else line[:, None]
    return np.ascontiguousarray(np.broadcast_to(line, (*size[::-1], 3)))


def _fit(places: np.ndarray, inside: np.ndarray, bounds: tuple[float, float], length: int) -> _Axis:
    """A line through what `[across, along]` pixels of a canvas tell of their place."""
    along, across = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    start, end = int(along[0]), int(along[-1]) + 1
    whole = _Axis(-start * length / (end - start), length / (end - start))
    places = places[np.ix_(across, along)]
    profile = places.mean(axis=0)
    straight = (profile > bounds[0] + BENT) & (profile < bounds[1] - BENT)
    used = np.flatnonzero(straight)
    if len(used) < 3:
        return whole
    scale, origin = np.polyfit(along[used] + 0.5, profile[used], 1)
    error = np.abs(places[:, used] - origin - scale * (along[used] + 0.5)).mean()
    if scale <= 0 or error > 1 + abs(scale) + (bounds[1] - bounds[0]) / 128:
        raise UnsupportedModelError(
            "a processor that crops, resizes, pads or tiles was wanted, and this one turns, "
            f"mirrors or bends the image (its pixels lie {error:.1f} off a rising line): "
            "where its tokens lie is not known here"
        )
    fitted = _Axis(float(origin), float(scale))
    # A crop takes off whole pixels of what was made, so less than half of one is none.
    off = max(abs(fitted.at(start)), abs(fitted.at(end) - length))
    return whole if off < max(0.4 * scale, 0.1) else fitted
