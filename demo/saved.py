"""A comparison with its answers as one JSON document, which may come back from anywhere."""

import base64
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any, get_args

from PIL import Image

from sightline import __version__
from sightline.demo.comparison import (
    Answer,
    Comparison,
    SamplingSettings,
    SourceImage,
    State,
    is_whole,
)
from sightline.demo.decoding import AS_SAVED, Bounds, Decoded, open_comparison
from sightline.demo.script import find_origin
from sightline.specs import Spec, parse_spec
from sightline.vision.images import MAX_PIXELS

FORMAT = "sightline comparison"
VERSION = 1
PACKAGES = ("torch", "transformers")
UNFINISHED = "It was still being answered when the comparison was saved."
UNSCALED = 10**9  # as a side: no image is scaled to it


@dataclass(frozen=True)
class Saved:
    """What a document holds.

    Args:
        comparison: What was asked.
        answers: One for each way.
        model: The checkpoint that answered.
        versions: Of sightline, torch and transformers at that time.
    """

    comparison: Comparison
    answers: tuple[Answer, ...]
    model: str
    versions: Mapping[str, str]


def to_json(comparison: Comparison, answers: Sequence[Answer], model: str) -> str:
    """The document that `from_json` reads; the image is in it pixel by pixel, as PNG.

    Args:
        comparison: What was asked.
        answers: One for each way.
        model: The checkpoint that answered.
    """
    image = comparison.image
    named = [way.named_settings for way in comparison.ways]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {
            "sightline": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "model": model,
        "question": comparison.question,
        "ways": [{"name": n, "settings": s} for n, s in named],
        "drawing": asdict(comparison.drawing),
        "answers": [asdict(answer) for answer in answers],
        "image": {
            "source": image.source,
            "truth": None if image.truth is None else sorted(image.truth),
            "original": image.original,
            "png": base64.b64encode(png(image.image)).decode(),
        },
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def png(image: Image.Image) -> bytes:
    """The pixels alone, without what else an image carries."""
    bare, file = image.copy(), BytesIO()
    bare.info = {}
    bare.save(file, format="PNG", compress_level=1)  # a large one at the default takes long
    return file.getvalue()


def from_json(text: str | bytes, max_pixels: int = MAX_PIXELS) -> Saved:
    """What `to_json` wrote, each field checked; fields that it does not write are ignored.

    An answer that was still coming when it was saved is a stopped one. Whether limits of length
    and of settings hold here is not looked at.

    Args:
        text: From anywhere.
        max_pixels: Of the image, which is not decoded where it has more.

    Raises:
        ValueError: It is no such document, of a newer version, or holds what cannot be.
    """
    return from_decoded(open_comparison(text, Bounds(max_pixels, UNSCALED)))


def from_decoded(found: Decoded) -> Saved:
    """What a document holds whose image has been opened; raises as `from_json`."""
    content = json.loads(found.document)
    check_version(content)
    if isinstance(content.get("image"), dict):
        content["image"].setdefault("original", None)  # older ones have none
    document = DOCUMENT(content, "the file")
    image, drawing = document["image"], document["drawing"]
    ways = tuple(map(read_way, document["ways"]))
    answers = tuple(map(finished, document["answers"]))
    if len(answers) != len(ways):
        raise refused("answers", f"as many as ways, which are {len(ways)}", document["answers"])
    if found.image is None:
        raise ValueError(f"image has no png: {AS_SAVED}")
    truth = None if image["truth"] is None else frozenset(image["truth"])
    shown = SourceImage(found.image, image["source"], truth, image["original"] or found.original)
    find_origin(shown)
    comparison = Comparison(shown, document["question"], ways, SamplingSettings(**drawing))
    return Saved(comparison, answers, document["model"], document["versions"])


def read_way(entry: Mapping[str, Any]) -> Spec:
    return parse_spec(entry["name"], [f"{key}={text}" for key, text in entry["settings"].items()])


def check_version(content: Any) -> None:
    """Raises `ValueError` for JSON that is something else, or from a later sightline."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'this JSON is no "{FORMAT}": {AS_SAVED}')
    version = whole(1, 10**6)(content.get("version"), "version")
    if version > VERSION:
        raise ValueError(
            f"the comparison is of version {version}, and this sightline reads up to version "
            f"{VERSION}: install a newer one"
        )


def finished(entry: Mapping[str, Any]) -> Answer:
    """An answer that nobody is writing any more."""
    if len(entry["pieces"]) != len(entry["ids"]):
        raise refused("pieces", f"as many as ids, which are {len(entry['ids'])}", entry["pieces"])
    answer = Answer(**entry)
    if answer.state != "answering":
        return answer
    return replace(answer, state="stopped", note=answer.note or UNFINISHED)


# What a field may be

Reader = Callable[[Any, str], Any]
"""Takes a value of JSON and its place; gives it back, or raises `ValueError`."""


def refused(place: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{place} must be {wanted}, got {named(value)}: {AS_SAVED}")


def named(value: Any) -> str:
    """A value in a few words, however large it is."""
    if isinstance(value, dict | list | tuple):
        return f"{len(value)} entries"
    shown = repr(value[:50] if isinstance(value, str) else value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def words(longest: int) -> Reader:
    def read(value: Any, place: str) -> str:
        if not isinstance(value, str) or len(value) > longest or not is_whole(value):
            raise refused(place, f"a text of at most {longest:,} characters", value)
        return value

    return read


def whole(low: int, high: int) -> Reader:
    def read(value: Any, place: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise refused(place, f"a whole number from {low} to {high}", value)
        return value

    return read


def number(high: float) -> Reader:
    def read(value: Any, place: str) -> float:
        if type(value) not in (int, float) or not 0 <= value <= high:
            raise refused(place, f"a number from 0 to {high:g}", value)
        return float(value)

    return read


def one_of(choices: Sequence[str]) -> Reader:
    def read(value: Any, place: str) -> str:
        if value not in choices:
            raise refused(place, f"one of {', '.join(choices)}", value)
        return value

    return read


def optional(reader: Reader) -> Reader:
    return lambda value, place: None if value is None else reader(value, place)


def several(reader: Reader, least: int, most: int) -> Reader:
    def read(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise refused(place, f"a list of {least} to {most:,} entries", value)
        return tuple(reader(one, f"{place}[{i}]") for i, one in enumerate(value))

    return read


def by_name(reader: Reader, most: int) -> Reader:
    def read(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise refused(place, f"an object of at most {most} entries", value)
        return {NAME(key, place): reader(one, f"{place}.{key}") for key, one in value.items()}

    return read


def record(**readers: Reader) -> Reader:
    """An object that has at least these fields."""

    def read(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refused(place, "an object", value)
        if missing := [name for name in readers if name not in value]:
            raise ValueError(f"{place} has no {', '.join(missing)}: {AS_SAVED}")
        prefix = "" if place == "the file" else f"{place}."
        return {name: reader(value[name], prefix + name) for name, reader in readers.items()}

    return read


MOST_TOKENS = 20_000  # of an answer
NAME, TEXT = words(300), words(20_000)
DOCUMENT = record(
    versions=by_name(NAME, 20),
    model=NAME,
    question=TEXT,
    ways=several(record(name=TEXT, settings=by_name(TEXT, 100)), 1, 4),
    drawing=record(
        max_new_tokens=whole(1, 10**6), temperature=number(1e6), seed=whole(0, 2**32 - 1)
    ),
    answers=several(
        record(
            state=one_of(get_args(State)),
            ids=several(whole(0, 2**31 - 1), 0, MOST_TOKENS),
            pieces=several(words(1_000), 0, MOST_TOKENS),
            first=optional(number(1e9)),
            later=number(1e9),
            peak=optional(whole(0, 2**60)),
            note=TEXT,
        ),
        1,
        4,
    ),
    image=record(
        source=NAME,
        truth=optional(several(NAME, 0, 1_000)),
        original=optional(several(whole(1, 10**6), 2, 2)),
    ),
)
