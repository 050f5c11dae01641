"""Where a question looks and a description does not, and the image cut down to it.

The arithmetic of CARVE, Ge et al., arXiv:2509.06461, on maps and images; it knows no model.
"""

import warnings
from math import isqrt
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from sightline.settings import wrong

Fill = Literal["black", "mean", "blur"]
BLUR = 0.05
"""Standard deviation of the "blur" fill, a share of the image's longer side."""
FLAT = 1e-3
"""Maps that vary by less, relative to their greatest value, say nothing: with equal attention on
both sides, what is left of the quotient is the smoothing."""


def contrasted(question: Tensor, general: Tensor, smoothing: float) -> Tensor:
    """Attention under the question by that under a description, `question / (general + lambda)`.

    Minimises, per token, `(x * general - question)^2 + lambda * x^2 * general` (eq. 4.5, 4.6).

    Args:
        question, general: Softmax weights of equal shape `[..., N]`, over images' tokens only and
            not normalised anew. Half precision is raised to float32: ratios near ties need it.
        smoothing: lambda, above 0 and far below the weights, which are 1e-5 to 1e-2.
    """
    if not smoothing > 0:
        raise ValueError(f"smoothing must be above 0, got {smoothing}")
    if question.shape != general.shape:
        raise ValueError(
            f"attention under the question is {list(question.shape)} and under the description "
            f"{list(general.shape)}: pair their steps, and give both the same image"
        )
    dtype = torch.promote_types(question.dtype, torch.float32)
    return question.to(dtype) / (general.to(dtype) + smoothing)


def kept_regions(
    relevance: Tensor, share: float, regions: int, covered: Tensor | None = None
) -> Tensor:
    """The most relevant regions of an image: `[H, W]` -> `[H, W]` bool, true on what stays.

    Pixels from the (1 - share) quantile upwards (linear interpolation) fall into 4-connected
    regions, and those with the greatest sums of relevance are kept; of equals the first in reading
    order. A map that is flat to a thousandth names no region: nothing is masked, with a warning.

    Args:
        relevance: Finite values, one for each pixel.
        share: p, in (0, 1], pixels before regions are left out; more where values are tied.
        regions: K, the most that are kept, 1 or more.
        covered: `[H, W]` bool, what the vision tower saw; the rest is neither counted nor kept.

    Differs from the authors' code, where K is the least number of regions kept.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if regions < 1:
        raise ValueError(f"regions must be 1 or more, got {regions}")
    if covered is None:
        covered = torch.ones_like(relevance, dtype=torch.bool)
    if covered.shape != relevance.shape:
        raise ValueError(
            f"covered is {list(covered.shape)}, and the map is {list(relevance.shape)}"
        )
    values, inside = relevance.detach().double().cpu().numpy(), covered.cpu().numpy()
    seen = values[inside]
    if not seen.size:
        raise ValueError("covered must be true somewhere: the vision tower saw none of the image")
    if not np.isfinite(seen).all():
        raise ValueError("relevance must be finite: the attention that it was made of is not")
    if np.ptp(seen) <= FLAT * np.abs(seen).max():
        warnings.warn(
            "the question draws no more attention to one place of the image than to another: "
            "all of it is kept",
            stacklevel=2,
        )
        return covered.clone()
    mask = inside & (values >= np.quantile(seen, 1 - share))
    # Summed pixel by pixel in reading order, so that equal regions have equal sums.
    region = components(mask)[mask]
    sums = np.bincount(region, weights=values[mask])
    best = np.argsort(-sums, kind="stable")[:regions]
    mask[mask] = np.isin(region, best)
    return torch.from_numpy(mask).to(relevance.device)


def components(mask: np.ndarray) -> np.ndarray:
    """4-connected parts of a `[H, W]` bool, numbered from 0 in reading order; -1 outside.

    Runs of a row are the nodes of a graph, runs that touch in neighbouring rows its edges. In each
    round every part joins the lowest-numbered part that it touches, until none touches another.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 1), dtype=bool)  # no run goes on in the next row
    padded[:, :width] = mask
    turns = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    starts, ends = turns[::2], turns[1::2]
    first = np.searchsorted(ends, starts + width + 1, side="right")
    last = np.searchsorted(starts, ends + width + 1, side="left")
    touching = last - first
    above = np.repeat(np.arange(len(starts)), touching)
    below = np.arange(len(above)) + np.repeat(first - (np.cumsum(touching) - touching), touching)
    part = np.arange(len(starts))
    while len(above):
        np.minimum.at(part, np.maximum(above, below), np.minimum(above, below))
        while not np.array_equal(part, root := part[part]):
            part = root
        above, below = part[above], part[below]
        apart = above != below
        above, below = above[apart], below[apart]
    _, number = np.unique(part, return_inverse=True)
    labels = np.full(mask.shape, -1)
    labels[mask] = np.repeat(number, ends - starts)
    return labels


def refined(image: Image.Image, mask: Tensor, fill: str = "black") -> Image.Image:
    """What a mask `[H, W]` keeps of an image: the rest filled, cropped to one box, enlarged.

    The box holds all kept regions. It is enlarged with Lanczos and its own aspect until both sides
    reach the image's; if that has more pixels than the image, only until it has as many, which
    is never less than the box itself.

    Args:
        fill: What stands outside of the mask: "black", the image's "mean" colour, or the image
            under a "blur".

    Differs from the authors' code, which sets no limit: 60,000 x 800 for a box 8 pixels high of
    1000 x 800.
    """
    if fill not in get_args(Fill):
        raise wrong("fill", f"one of {', '.join(get_args(Fill))}", fill)
    width, height = image.size
    if mask.shape != (height, width):
        raise ValueError(f"the image is {height} x {width}, and its mask {list(mask.shape)}")
    kept = Image.fromarray(mask.cpu().numpy() * np.uint8(255))
    box = kept.getbbox()
    if box is None:
        raise ValueError("the mask keeps nothing of the image: keep one pixel at least")
    image = image.convert("RGB")
    crop = Image.composite(image, _ground(image, fill), kept).crop(box)
    return crop.resize(enlarged(crop.size, image.size), Image.Resampling.LANCZOS)


def enlarged(crop: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a crop when enlarged as in `refined`; fractions are cut off."""
    (w, h), (width, height) = crop, whole
    size = (width, h * width // w) if width * h >= height * w else (w * height // h, height)
    if size[0] * size[1] <= width * height:
        return size
    return isqrt(w * width * height // h), isqrt(h * width * height // w)


def _ground(image: Image.Image, fill: str) -> Image.Image:
    if fill == "blur":
        return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    colour = (0, 0, 0)
    if fill == "mean":
        red, green, blue = np.asarray(image).mean(axis=(0, 1)).round().astype(int).tolist()
        colour = (red, green, blue)
    return Image.new("RGB", image.size, colour)
