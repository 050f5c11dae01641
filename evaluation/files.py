"""Readers of published files: JSON rows that know their place, fingerprints, images that exist.

Everything is checked while it is read, so that a mistake is found before a model is loaded.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from sightline.json_text import json_text
from sightline.messages import LONGEST, check_characters, clipped, enumerated, short, unknown
from sightline.vision.images import open_image, path_is

S = TypeVar("S")
T = TypeVar("T")
GZIP = b"\x1f\x8b"  # the first two bytes
SHOWN = 3  # missing images named in a message
UNDECODED = re.compile(r"[\udc80-\udcff]")  # bytes that "surrogateescape" could not decode
HALF = re.compile(r"\\ud[89a-f]|[\ud800-\udfff]", re.IGNORECASE)  # of a surrogate pair, maybe alone


class Row(dict[str, Any]):
    """One JSON object of a file.

    Attributes:
        place: Where it stands, as messages name it: "coco.json, line 7" of JSON lines,
            "coco.json, row 7" of an array, both counted from 1.
    """

    def __init__(self, values: Mapping[str, Any], place: str):
        super().__init__(values)
        self.place = place

    def text(self, field: str) -> str:
        """A field that must hold text, and some."""
        value = self._there(field)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.place}: {field} must be text, got {short(value)}")
        return value

    def key(self, field: str) -> str:
        """A field that must hold a whole number or text, as text."""
        value = self._there(field)
        if isinstance(value, float) and value.is_integer():  # as tables with gaps save numbers
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(field)

    def choice(self, field: str, allowed: Collection[str]) -> str:
        """A field that must hold one of some words, in any case; in lower case."""
        value = self.key(field).strip().lower()
        if value not in allowed:
            raise ValueError(
                f"{self.place}: {field} must be one of {', '.join(allowed)}, "
                f"got {short(self[field])}"
            )
        return value

    def _there(self, field: str) -> Any:
        if field not in self:
            fields = enumerated(self) or "none"
            raise ValueError(f"{self.place}: the field {field} is missing (there are: {fields})")
        return self[field]


@dataclass(frozen=True)
class Malformed:
    """A line of a question file that cannot be asked; it stands where its question would.

    Attributes:
        place: As `Row.place`.
        error: Names file and line, and what is wrong.
    """

    place: str
    error: str


def sift(
    placed: Iterable[tuple[str, S]],
    read: Callable[[str, S], tuple[str, T]],
    what: str,
    seen: dict[str, str] | None = None,
) -> list[T | Malformed]:
    """Reads each line of a file by itself, so that a malformed one costs no other.

    Args:
        placed: The lines, each after its place.
        read: Gives a line's key and value, or raises `ValueError`.
        what: The key, as messages name it. Of two lines with one key the second is malformed.
        seen: Key -> place, of files read before; new ones are added.

    Raises:
        ValueError: More than half of the lines are malformed: the error of the first, since this
            is another kind of file.
    """
    seen = {} if seen is None else seen
    found: list[T | Malformed] = []
    bad: list[Malformed] = []
    for place, line in placed:
        try:
            key, value = read(place, line)
            if key in seen:
                raise ValueError(comes_twice(place, what, key, seen[key]))
            seen[key] = place
            found.append(value)
        except ValueError as error:
            bad.append(Malformed(place, str(error)))
            found.append(bad[-1])
    if 2 * len(bad) > len(found):
        raise ValueError(bad[0].error)
    return found


def sound(lines: Iterable[T | Malformed]) -> list[T]:
    """The lines that are not malformed."""
    return [line for line in lines if not isinstance(line, Malformed)]


def read_text(path: Path, published: str = "", errors: str = "strict") -> str:
    """A file's text, UTF-8 with or without a byte order mark; a file of gzip is unpacked.

    Args:
        published: A sentence on where the file is published, for the message where it is missing.
        errors: What `bytes.decode` does with bytes that are no UTF-8.
    """
    name = clipped(path, 3 * LONGEST)
    try:
        content = Path(path).read_bytes()
        packed = content.startswith(GZIP)
        return (gzip.decompress(content) if packed else content).decode("utf-8-sig", errors)
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file. {published}".rstrip()) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text ({error.reason} at {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be read: {clipped(reason)}") from None


def read_lines(path: Path, published: str = "") -> list[tuple[str, str]]:
    """Lines that are not blank, each after its place: `[("a.txt, line 1", "..."), ...]`.

    Lines end in LF or CRLF. Other characters that some take for line ends belong to the text.
    """
    return _lines(read_text(path, published), Path(path).name)


def read_json(path: Path, published: str = "") -> Any:
    """The value of a JSON file."""
    try:
        return parse_json(read_text(path, published), Path(path).name)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{Path(path).name}, line {error.lineno}: not JSON ({error.msg}): the file is cut off "
            "or of another kind"
        ) from None


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text.

    Args:
        place: Where it stands, for messages.

    Raises:
        JSONDecodeError: It is no JSON.
        ValueError: It is nested too deeply, or has a number of too many digits or half a character.
    """
    try:
        value = json.loads(text)
        if HALF.search(text):
            check_characters(json_text(value, ensure_ascii=False), "its text")
    except RecursionError:
        raise ValueError(f"{place}: the JSON is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{place}: {clipped(error, 3 * LONGEST)}") from None
    return value


def read_rows(path: Path, published: str = "") -> list[Row]:
    """The objects of a file of JSON lines, of one JSON array, or its one object.

    All are published as `.json`.

    Raises:
        ValueError: The file is missing, empty, no JSON, or one of its rows is no object.
    """
    return [read_row(*entry) for entry in read_entries(path, published)]


def read_sifted(
    path: Path,
    check: Callable[[Row], str],
    what: str,
    published: str = "",
    seen: dict[str, str] | None = None,
) -> list[Row | Malformed]:
    """The objects of a question file, as `read_rows` takes them, and its malformed lines.

    Args:
        check: Gives a row's key, or raises `ValueError` for a row that cannot be asked.
        what: See `sift`.
        seen: See `sift`.

    Raises:
        ValueError: The file is missing or empty, or as a whole of another kind: a JSON array that
            does not end, for example, or most lines are malformed.
    """

    def read(place: str, entry: Any) -> tuple[str, Row]:
        row = read_row(place, entry)
        return check(row), row

    return sift(read_entries(path, published), read, what, seen)


@dataclass(frozen=True)
class Line:
    """A line of a file that is not one JSON value as a whole."""

    text: str


def read_entries(path: Path, published: str = "") -> list[tuple[str, Any]]:
    """What a file lists, each after its place: the values of a JSON array, its one object, or each
    `Line` that is not blank.

    Raises:
        ValueError: The file is missing, is empty, or is a JSON array that cannot be read.
    """
    text, name = read_text(path, published, "surrogateescape"), Path(path).name
    if not text.strip():
        raise ValueError(f"{name} is empty: JSON lines or one JSON array are wanted")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and "\n" in text.strip():
        whole = [whole]
    if isinstance(whole, list):
        if not whole:
            raise ValueError(f"{name} holds no rows. {published}".rstrip())
        return [(f"{name}, row {n}", value) for n, value in enumerate(whole, start=1)]
    lines = _lines(text, name)
    objects = sum(_is_object(line) for _, line in lines)
    if text.lstrip().startswith("[") and 2 * objects <= len(lines):
        read_json(path)  # an array that is cut off: raises
    return [(place, Line(line)) for place, line in lines]


def read_row(place: str, entry: Any) -> Row:
    """The object of an entry, or `ValueError` for one that is none."""
    if isinstance(entry, Line):
        value = _object(place, entry.text)
    else:
        value = entry
        try:
            check_characters(json_text(value, ensure_ascii=False), place)
        except RecursionError:
            raise ValueError(f"{place}: the JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place}: a JSON object is wanted, got {type(value).__name__}")
    return Row(value, place)


def as_list(values: Any) -> list[Any]:
    """Several values, or one text, path or loaded file by itself, as a list."""
    return [values] if isinstance(values, str | Path | Mapping) else list(values)


def check_unique(rows: Iterable[Row], what: str, key: Callable[[Row], str]) -> None:
    """Raises `ValueError`, naming both places, where two rows have the same key."""
    first: dict[str, str] = {}
    for row in rows:
        name = key(row)
        if name in first:
            raise ValueError(comes_twice(row.place, what, name, first[name]))
        first[name] = row.place


def comes_twice(place: str, what: str, key: str, first: str) -> str:
    return f"{place}: {what} {clipped(key)} comes twice, first in {first}"


def fingerprint(path: Path, rows: int) -> dict[str, Any]:
    """What tells a file from another version of it, without its folder."""
    return {"name": Path(path).name, "rows": rows, "sha256": digest(Path(path).read_bytes())}


def digest(content: bytes) -> str:
    """The first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def check_images(folder: Path, names: Iterable[str]) -> None:
    """Raises `ValueError` unless every named image is a file below the folder, and not by a way
    out of it."""
    folder = Path(folder)
    if not path_is(folder, Path.is_dir):
        raise ValueError(f"{clipped(folder)} is no folder: pass the one that holds the images")
    wanted = list(dict.fromkeys(names))
    outside = [name for name in wanted if leads_out(folder, name)]
    if outside:
        raise ValueError(
            f"{len(outside)} of {len(wanted)} images are outside of "
            f"{clipped(folder, 2 * LONGEST)}: {enumerated(outside, SHOWN)}. An image is named by "
            "its path below the folder; no absolute path, .. or link may lead out of it"
        )
    missing = [name for name in wanted if not path_is(folder / name, Path.is_file)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} images are not in {clipped(folder, 2 * LONGEST)}: "
            f"{enumerated(missing, SHOWN)}. Pass the "
            "folder that holds them"
        )


def open_inside(folder: Path, name: str) -> Image.Image:
    """The image of a name below a folder; raises as `open_image`, and for one outside."""
    if leads_out(folder, name):
        raise ValueError(f"{clipped(name)} is outside of {clipped(folder, 2 * LONGEST)}")
    return open_image(folder / name)


def leads_out(folder: Path, name: str) -> bool:
    """Whether a name does not lead to a place below the folder, links followed."""
    try:
        return not (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a ring of links
        return True
    except ValueError:  # no name of a file
        return False


def check_name(what: str, name: str, names: Collection[str]) -> None:
    """Raises `ValueError`, which lists the names there are, for another one."""
    if name not in names:
        raise unknown(what, name, names)


def pick(what: str, name: str, options: Mapping[str, T]) -> T:
    """The option of a name, or `ValueError` that lists those there are."""
    check_name(what, name, options)
    return options[name]


def check_length(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def _lines(text: str, name: str) -> list[tuple[str, str]]:
    return [
        (f"{name}, line {number}", line.removesuffix("\r"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(place: str, line: str) -> Any:
    if UNDECODED.search(line):
        raise ValueError(f"{place} is no UTF-8 text")
    try:
        return parse_json(line, place)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: not JSON ({error.msg} at character {error.pos + 1}): one JSON object per "
            "line, or one JSON array, is wanted"
        ) from None
