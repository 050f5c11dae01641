"""What the browser's forms offer, and what they hold: decoders, their settings, the drawing."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sightline.demo.comparison import SamplingSettings, is_whole
from sightline.demo.controls import (
    PLAIN,
    Control,
    choices_of_decoders,
    controls_of,
    spec_of_controls,
)
from sightline.docstrings import paper
from sightline.messages import short
from sightline.specs import Spec, find

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
LONGEST_TEXT = 10_000  # characters of one field of a form
MOST_TEXTS = 100
SCENES = (4, 500, 40)  # least, most, and to begin with


def offer(way: Callable[[str], Spec]) -> dict[str, dict[str, Any]]:
    """All that can be chosen, by name: what it does, its paper, a control for each setting.

    Args:
        way: A name with the settings that it begins with on this model.
    """
    return {name: described(name, meaning, way(name)) for name, meaning in choices_of_decoders()}


def described(name: str, meaning: str, begins: Spec) -> dict[str, Any]:
    title = url = ""
    if name not in PLAIN:
        kind, preset = find(name)
        title = paper(kind)
        if preset is not None:
            does = (inspect.getdoc(kind) or "").partition("\n")[0]
            meaning = f"{does} {meaning}"
        if found := ARXIV.search(title):
            url = f"https://arxiv.org/abs/{found[1]}"
    return {
        "meaning": meaning,
        "paper": title,
        "url": url,
        "controls": [asdict(control) for control in controls_of(name)],
        "begins": begins.named_settings[1],
    }


def form_of_way(way: Spec, is_shown: bool = True) -> dict[str, Any]:
    """The form's value that `read_way` reads back."""
    name, settings = way.named_settings
    return {"name": name, "settings": settings, "is_shown": is_shown}


def is_shown(value: Any) -> bool:
    """Whether a column is on the page."""
    return isinstance(value, Mapping) and value.get("is_shown") is True


def read_way(value: Any) -> Spec:
    """What a column of the page asks for, without settings that are where they begin.

    Args:
        value: As `form_of_way` makes it; but it comes from a browser, so it may be anything.

    Raises:
        ValueError: For a setting that does not exist or whose text cannot be read.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("a decoder's name is needed: choose one from the list")
    name = value["name"]
    if not is_whole(name):
        raise ValueError("a decoder's name holds half a character: choose one from the list")
    return spec_of_controls(name, texts(value.get("settings")))


def texts(value: Any) -> dict[str, str]:
    """Texts by name, or `ValueError`: what a form holds, if it has not been tampered with."""
    if not isinstance(value, Mapping) or len(value) > MOST_TEXTS:
        raise ValueError("settings by name are needed: load the page again")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError("a setting's text is needed: load the page again")
        if not is_whole(key + text):
            raise ValueError("a setting's text holds half a character: write it again")
        if len(text) > LONGEST_TEXT:
            raise ValueError(
                f"{key[:100]} has {len(text)} characters, and at most {LONGEST_TEXT} are allowed"
            )
    return dict(value)


def drawing_controls(longest: int) -> list[Control]:
    """Of how tokens are taken.

    Args:
        longest: Most tokens of an answer.
    """
    begins = SamplingSettings()
    return [
        number(
            "max_new_tokens",
            "Longest answer",
            min(begins.max_new_tokens, longest),
            "In tokens; an answer that ends by itself is shorter.",
            (1, longest, 1),
        ),
        number(
            "temperature",
            "Temperature",
            begins.temperature,
            "0 takes the best token each time; above, tokens are drawn, the wilder the higher.",
            (0.0, 2.0, 0.05),
        ),
        number(
            "seed",
            "Seed",
            begins.seed,
            "Of what is drawn: the same seed draws the same answer.",
            (0, 99, 1),
        ),
    ]


def scene_controls() -> list[Control]:
    """Of an evaluation on the lab's scenes."""
    low, high, usual = SCENES
    meaning = "Each has up to six questions and a caption, asked in every column's way."
    return [number("scenes", "Scenes", usual, meaning, (low, high, 1))]


def read_scenes(value: Any) -> int:
    """How many scenes a form asks for, or `ValueError`."""
    low, high, usual = SCENES
    scenes = read_number("number of scenes", texts(value).get("scenes", str(usual)), int)
    if not low <= scenes <= high:
        raise ValueError(f"the number of scenes is {low} to {high}, got {scenes}")
    return scenes


def number(
    name: str, label: str, value: float, meaning: str, span: tuple[float, float, float]
) -> Control:
    """A control for a number with its least and greatest usual value and the step between."""
    wanted = "a whole number" if isinstance(value, int) else "a number"
    low, high, step = span
    usual = f"{wanted}, {low:g} to {high:g}"
    return Control(name, label, "slider", value, str(value), usual, meaning, low, high, step)


def form_of_drawing(drawing: SamplingSettings) -> dict[str, str]:
    """The form's value that `read_drawing` reads back."""
    return {name: str(value) for name, value in asdict(drawing).items()}


def read_drawing(value: Any) -> SamplingSettings:
    """What a form says of how tokens are taken; `ValueError` for what is no number."""
    given = texts(value)
    begins = asdict(SamplingSettings())
    read = {
        name: read_number(name.replace("_", " "), given.get(name, str(default)), type(default))
        for name, default in begins.items()
    }
    return SamplingSettings(**read)


def read_number(name: str, text: str, kind: type) -> Any:
    """A text as an int or a float; a whole number may be written 3.0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = kind is int
    if not math.isfinite(value) or (whole and not value.is_integer()):
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"the {name} must be {wanted}, got {short(text[:100])}")
    return kind(value)


def fields(controls: Sequence[Control]) -> list[dict[str, Any]]:
    """Controls as the browser reads them."""
    return [asdict(control) for control in controls]
