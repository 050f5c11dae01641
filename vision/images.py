"""Images from anywhere, as the 8-bit RGB that processors of vision-language models expect."""

import base64
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sightline.messages import LONGEST, clipped


def user_turn(images: Sequence[Any], text: str) -> list[dict[str, Any]]:
    """The messages of a chat in which a user shows images, then says something of them."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


URL = re.compile(r"(data|[A-Za-z][A-Za-z0-9+.-]+(?=://)):", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
FEWEST_LETTERS = 64  # of an image in base64; no file of one is as small
MAX_PIXELS = 100_000_000
BAND = 4_000_000  # pixels
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Kinds of file that are opened, as Pillow calls them: all are decoded by its own process alone."""
KINDS = "a PNG, JPEG, WebP, GIF, BMP, TIFF or PPM file"
SPECIAL = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
PHOTOGRAPH_FIRST = ("MPO",)  # a camera's JPEG: the photograph, then previews or depth


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as it is meant to be seen: mode RGB, upright, with 8 bits per channel.

    An orientation in EXIF is applied, transparency is laid on white, 16-bit and floating-point
    values are scaled to 8 bits (see `to_bytes`), and all other modes are converted. Texts that a
    file carries stay in `info`.

    Args:
        source: A path of a regular file, a file's bytes, a file opened in binary mode, a file in
            base64 (a text or a data URL), or a PIL image, which is left as it is. Files are of one
            of `FORMATS`. Nothing is fetched: a URL is refused.
        max_pixels: The most that are decoded.

    Raises:
        ValueError: The file is missing, damaged or no image, a folder, pipe, socket or device,
            holds several frames, or has more than `max_pixels`, which is known before they are
            decoded.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, Image.Image):
        if source.format not in (None, *FORMATS, *PHOTOGRAPH_FIRST):
            raise ValueError(
                f"the image is of the format {source.format}, which is not decoded: pass "
                f"{KINDS}, or what you decode yourself, as image.convert('RGB') gives it"
            )
        return _checked_rgb(source, "the image", max_pixels)
    name, file = _named(source)
    if not isinstance(file, Path):
        return _opened(file, name, max_pixels)
    with _regular(file, name) as opened:
        return _opened(opened, name, max_pixels)


def _opened(file: Any, name: str, max_pixels: int) -> Image.Image:
    """The image in a file that is open."""
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is not an image that can be read (another kind of file, or cut off): pass "
            f"{KINDS}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more than {max_pixels // 10**6} megapixels ({error}): make it smaller"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # of a header or chunk that is cut off, or unpacks to too much
        raise ValueError(f"{name} cannot be read: {clipped(error)}") from error
    with opened:
        return _checked_rgb(opened, name, max_pixels, is_ours=True)


def _regular(path: Path, name: str) -> BinaryIO:
    """The file, opened; of a pipe, socket or device not even that, as opening one may wait."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {clipped(error.strerror or error)}") from None
    except ValueError as error:  # a path that no system can have
        raise ValueError(f"{name} cannot be read: {clipped(error)}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder: pass one image in it")
    kind = next((kind for is_one, kind in SPECIAL.items() if is_one(mode)), "no regular file")
    raise ValueError(f"{name} is {kind}: pass an image's file")


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth, `[H, W]`, as 0 to 255, without clipping.

    The darkest and the brightest value are those of the smallest usual range that holds all
    values: 0 to 1 (floating point only), 0 to 255, 0 to 65535. Values outside of these are
    stretched between the least and the greatest. Unsigned 16-bit values always mean 0 to 65535.
    """
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite numbers")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "u":
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        usual = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        low, high = 0.0, next(top for top in usual if high <= top)
    scale = 255 / ((high - low) or 1)
    return np.round((values.astype(np.float32) - low) * scale).astype(np.uint8)


def path_is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """What a path says of itself, as `Path.is_dir`; False for one that is too long for a file."""
    try:
        return kind(path)
    except OSError:
        return False


def _named(source: Any) -> tuple[str, Any]:
    """What to call the source in a message, and what Pillow opens."""
    if isinstance(source, str) and (named := _written(source)) is not None:
        return named
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return clipped(path, 3 * LONGEST), path
    if isinstance(source, bytes | bytearray | memoryview):
        return "the image", BytesIO(source)
    if hasattr(source, "read") and not hasattr(source, "encoding"):
        return "the image", source
    raise TypeError(
        "an image is a path, bytes, a file opened in binary mode or a PIL image, got "
        f"{type(source).__name__}"
    )


def _written(text: str) -> tuple[str, Any] | None:
    """An image that is written out in a text: what to call it, and its bytes. None for a path."""
    scheme = URL.match(text)
    if scheme is None:
        # Letters and digits may be a path as well, which goes first.
        is_short = len(text) < FEWEST_LETTERS
        if is_short or not BASE64.fullmatch(text) or path_is(Path(text), Path.exists):
            return None
        return "the text in base64", BytesIO(_decoded(text))
    if scheme[1].lower() != "data":
        raise ValueError(
            f"{clipped(text)} is a URL, and nothing is fetched: download the image, and pass its "
            "path, its bytes or a PIL image"
        )
    head, comma, content = text.partition(",")
    if not (comma and head.lower().endswith(";base64")):
        raise ValueError(f"{clipped(text)} is a data URL without base64: pass the image's bytes")
    return "the data URL", BytesIO(_decoded(unquote(content)))


def _decoded(text: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without its padding; b"" where it is none."""
    letters = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError:
        return b""


def _checked_rgb(
    image: Image.Image, name: str, max_pixels: int, is_ours: bool = False
) -> Image.Image:
    """A new image in RGB, or `ValueError`. One of ours is turned itself, without a copy."""
    width, height = image.size
    if width * height == 0:
        raise ValueError(f"{name} is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width * height / 1e6:.3g} megapixels, and at most "
            f"{max_pixels / 1e6:.3g} are allowed: make it smaller"
        )
    if image.format not in PHOTOGRAPH_FIRST and _has_second_frame(image, name):
        raise ValueError(
            f"{name} holds several frames or pages, and one image is wanted: pass one of them, "
            "as image.seek(0); image.copy() gives it"
        )
    with _readable(name):
        # Also takes the orientation out of `info`, so that nobody turns the image again.
        upright = image if is_ours else ImageOps.exif_transpose(image)
        if is_ours:
            ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(upright)
    rgb.info = {key: text for key, text in upright.info.items() if isinstance(text, str)}
    return rgb


def _has_second_frame(image: Image.Image, name: str) -> bool:
    """Whether there is one; they are not counted, which takes long for many."""
    here = image.tell()
    if here > 0:
        return True
    with _readable(name):
        try:
            image.seek(1)
        except EOFError:
            return False
        image.seek(here)
    return True


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Whatever a decoder of Pillow trips over in a damaged file becomes a `ValueError`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name} is damaged or of a kind that cannot be converted to RGB "
            f"({clipped(error)}): save it "
            "again as PNG or JPEG"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
        values = np.asarray(image)
        levels = to_bytes(values)
        if "transparency" in image.info:
            levels[values == image.info["transparency"]] = 255
        return Image.fromarray(levels).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """In bands, so that a large image is not held five times."""
    width, height = image.size
    rgb, rows = Image.new("RGB", image.size), max(1, BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return rgb


def are_none(images: Any) -> bool:
    """Whether no image is among them: None, or a list that holds nothing else."""
    return images is None or (isinstance(images, list | tuple) and all(map(are_none, images)))


def listed(images: Any) -> list[Any]:
    """One image or several, as a list with at least one."""
    one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    if one or hasattr(images, "read"):
        return [images]
    if not isinstance(images, list | tuple):
        raise TypeError(
            f"images is an image or a list of images, got {type(images).__name__}: pass PIL "
            "images, paths, bytes or open files"
        )
    if not images:
        raise ValueError("no image came: pass at least one")
    return list(images)
