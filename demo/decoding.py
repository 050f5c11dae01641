"""Opens files of visitors in a process of its own, within bounds of time and memory.

`decode` is what the server calls; `python -m sightline.demo.decoding` is the process. It knows
neither torch nor the model, so that it starts in a fifth of a second.
"""

import base64
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Literal

from PIL import Image

from sightline.json_text import json_text
from sightline.messages import short
from sightline.vision.images import open_image

Kind = Literal["image", "comparison"]
PREVIEW = 640  # longest side of an image on the page, in pixels
SECONDS = 20.0  # the longest that a file may take
BYTES = 1_000_000_000
LONGEST_TEXT = 10_000  # characters of one text that an image carries
MOST_ENTRIES = 250_000  # of all lists and objects of a comparison together
DEEPEST = 12
PIXEL = 5  # characters of a comparison for a pixel at most: three bytes in base64, hardly packed
REST = 2**24  # characters of a comparison besides its image, at most
AS_SAVED = "load a file as the demo saved it"
TOO_LONG = "takes too long to open: save it again as a PNG or JPEG, or smaller"
TOO_LARGE = "needs too much memory to open: save it again as a PNG or JPEG, or smaller"
BROKEN = "cannot be read: save it again as a PNG or JPEG"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What is decoded.

    Args:
        pixels: Of an image, at most.
        side: Shortest side of an image that the model needs. One that is kept has this or, where
            that is more, the longest side that the page shows; and no more than `kept_pixels`.
        seconds: For one file.
        bytes: Of memory, the program's own included; on Linux alone.
    """

    pixels: int
    side: int
    seconds: float = SECONDS
    bytes: int = BYTES

    @property
    def kept_pixels(self) -> int:
        """Of an image that is kept, at most."""
        return max(4 * self.side**2, PREVIEW**2)

    @property
    def kept_bytes(self) -> int:
        """Of the largest image that is kept: Pillow takes four for a pixel."""
        return 4 * self.kept_pixels


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a file holds.

    Args:
        image: In RGB, scaled to the bounds; None of a comparison without a readable one.
        original: Its width and height before that; None where it was not scaled.
        document: The rest of a comparison, as JSON.
    """

    image: Image.Image | None
    original: tuple[int, int] | None = None
    document: str = ""


def decode(data: bytes, kind: Kind, bounds: Bounds) -> Decoded:
    """Opens a file in a process of its own.

    Raises:
        ValueError: For what cannot be opened in these bounds; it begins with "the image".
    """
    command = [sys.executable, "-m", "sightline.demo.decoding", kind, json_text(asdict(bounds))]
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=bounds.seconds,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the image {TOO_LONG}") from None
    end = done.stdout.find(b"\n") + 1
    try:
        said = json.loads(done.stdout[:end])
    except ValueError:  # it was killed
        error = done.stderr.decode(errors="replace")[-2000:]
        logger.warning("a file of a visitor could not be decoded (%s): %s", done.returncode, error)
        raise ValueError(f"the image {BROKEN}") from None
    if said["refused"]:
        raise ValueError(said["refused"])
    image = None
    if said["size"]:
        image = Image.frombytes("RGB", tuple(said["size"]), memoryview(done.stdout)[end:])
        image.info = said["info"]
    original = tuple(said["original"]) if said["original"] else None
    return Decoded(image, original, said["document"])


def kept_size(size: tuple[int, int], bounds: Bounds) -> tuple[int, int]:
    """The size of an image that is kept, in its proportions; the same where it is small."""
    most = bounds.kept_pixels
    scale = min(
        1.0,
        max(PREVIEW / max(size), bounds.side / min(size)),
        math.sqrt(most / (size[0] * size[1])),
    )
    width, height = (max(1, round(scale * length)) for length in size)
    return min(width, most), min(height, most)  # of one that is hardly a pixel thin


# The process


def main() -> None:
    kind, bounds = sys.argv[1], Bounds(**json.loads(sys.argv[2]))
    restrict(bounds)
    said: dict[str, Any] = {
        "refused": "",
        "size": None,
        "info": {},
        "original": None,
        "document": "",
    }
    pixels = b""
    try:
        data = sys.stdin.buffer.read()
        found = open_comparison(data, bounds) if kind == "comparison" else open_scaled(data, bounds)
        said |= {"original": found.original, "document": found.document}
        if found.image is not None:
            texts = found.image.info.items()
            said["info"] = {key: text for key, text in texts if len(key + text) <= LONGEST_TEXT}
            said["size"], pixels = found.image.size, found.image.tobytes()
    except MemoryError:
        said["refused"] = f"the image {TOO_LARGE}"
    except ValueError as error:
        said["refused"] = str(error)
    sys.stdout.buffer.write(json_text(said).encode() + b"\n")
    sys.stdout.buffer.write(pixels)


def restrict(bounds: Bounds) -> None:
    """Bounds this process: it ends itself where the server has ended and cannot."""
    try:
        import resource
    except ImportError:  # on Windows the time alone is bounded, by the server
        return
    limits = {resource.RLIMIT_CPU: math.ceil(bounds.seconds), resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # others do not keep to it
        limits[resource.RLIMIT_AS] = bounds.bytes
    for name, most in limits.items():
        with suppress(ValueError):  # a lower one holds already
            resource.setrlimit(name, (most, most))
    os.nice(5)  # answers go first


def open_scaled(data: bytes, bounds: Bounds) -> Decoded:
    """A file's image, scaled; `ValueError` for what is none."""
    image = open_image(data, bounds.pixels)
    size = kept_size(image.size, bounds)
    if size == image.size:
        return Decoded(image)
    scaled = image.resize(size)
    scaled.info = image.info
    return Decoded(scaled, image.size)


def open_comparison(text: str | bytes, bounds: Bounds) -> Decoded:
    """A saved comparison: its image, and its JSON without it.

    `sightline.demo.saved` checks what the JSON says.
    """
    content = read_json(text, bounds.pixels)
    image = content.get("image") if isinstance(content, dict) else None
    found = Decoded(None)
    if isinstance(image, dict) and "png" in image:
        found = open_png(image.pop("png"), bounds)
    check_entries(content)
    return Decoded(found.image, found.original, json_text(content))


def read_json(text: str | bytes, pixels: int) -> Any:
    """JSON of a bearable length, read; the `ValueError` of what is none says so."""
    longest = pixels * PIXEL + REST
    if len(text) > longest:
        raise ValueError(
            f"a saved comparison has at most {longest:,} characters here, got {len(text):,}: "
            "save one with a smaller image"
        )
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=float)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ValueError(
            f"a saved comparison is JSON, and this cannot be read as such ({reason}): {AS_SAVED}"
        ) from None


def open_png(text: Any, bounds: Bounds) -> Decoded:
    """The image in a comparison, which has nothing but its pixels."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise ValueError(
            f"image.png must be an image in base64, got {short(text)}: {AS_SAVED}"
        ) from None
    try:
        Image.open(BytesIO(data), formats=["PNG"]).close()
    except Exception:
        raise ValueError(f"image.png is no PNG image: {AS_SAVED}") from None
    found = open_scaled(data, bounds)
    assert found.image is not None
    found.image.info = {}
    return found


def check_entries(content: Any) -> None:
    """Raises `ValueError` for JSON that would take the server long to read again."""
    entries, level = 0, [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, Mapping | list)
            for inner in (one.values() if isinstance(one, Mapping) else one)
        ]
        entries += len(level)
    if level or entries > MOST_ENTRIES:
        raise ValueError(
            f"a saved comparison has at most {MOST_ENTRIES:,} entries, nested {DEEPEST} deep: "
            f"{AS_SAVED}"
        )


if __name__ == "__main__":
    main()
