"""Files that come from a browser: inside an event, so that none is ever written to disk."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

PICTURE_MEGABYTES = 30
COMPARISON_MEGABYTES = 60
REQUEST_MEGABYTES = 64
"""A request with one of them, a picture in base64."""
LONGEST_NAME = 100


@dataclass(frozen=True)
class Upload:
    """A file's bare name and bytes."""

    name: str
    data: bytes


def read_picture(sent: Any) -> Upload:
    """What a page sends of a picture's file: `{"name": ..., "size": bytes, "data": base64}`.

    Anything may come.

    Raises:
        ValueError: For a file that is empty, too large, or did not arrive as it was sent.
    """
    name, text = read(sent)
    for size in (sent.get("size"), len(text) * 3 // 4):
        check_size(name, size, PICTURE_MEGABYTES, "choose a smaller file, such as a JPEG")
    if not text:
        raise ValueError(f"{name} is empty: choose another file")
    try:
        return Upload(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} did not arrive whole: choose it again") from None


def read_comparison(sent: Any) -> str:
    """What a page sends of a comparison's file: `{"name": ..., "size": bytes, "data": text}`.

    Raises `ValueError` for a file that is too large or did not arrive.
    """
    name, text = read(sent)
    for size in (sent.get("size"), len(text)):
        check_size(name, size, COMPARISON_MEGABYTES, "compare on a smaller picture")
    return text


def read(sent: Any) -> tuple[str, str]:
    """A file's bare name and its content as text, or `ValueError`."""
    name, text = (sent.get("name"), sent.get("data")) if isinstance(sent, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError("no file arrived: choose it again")
    return bare(name), text


def check_size(name: str, size: Any, megabytes: int, way_out: str) -> None:
    """What is too large comes with its size alone."""
    if isinstance(size, int | float) and size > megabytes * 10**6:
        raise ValueError(f"{name} has more than {megabytes} MB: {way_out}")


def bare(name: str) -> str:
    """A file's name without folders, unprintable characters and undue length."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    return shown[-LONGEST_NAME:] or "picture"
