"""Decoders from text: `vdd`, `vdd:variant=unk,alpha=0.5`, `greedy,vdd:markers=3+4,vcd`.

A comma separates settings and decoders, `+` the parts of one value. Which settings there are and
how each is read comes from the fields of the decoder's class.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Union, get_args, get_origin, get_type_hints

from sightline.decoders import DECODERS

FILLED = "processor"
"""The field that is filled in and not set by users."""


@dataclass(frozen=True)
class Request:
    """A decoder that was asked for, its settings read but not yet checked by the decoder.

    Args:
        label: What was asked for, without blanks and with the name in lower case.
        kind: The decoder's class.
        settings: Values by name.
    """

    label: str
    kind: type
    settings: Mapping[str, Any]

    def build(self, processor: Any) -> Any:
        """The decoder, with the processor where it takes one; `ValueError` for bad settings."""
        takes = {FILLED} & {setting.name for setting in fields(self.kind)}
        try:
            return self.kind(**self.settings, **dict.fromkeys(takes, processor))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.label}: {error}") from error


def split_decoders(text: str) -> list[tuple[str, list[str]]]:
    """`greedy,vdd:alpha=0.5,beta=0.2` -> [("greedy", []), ("vdd", ["alpha=0.5", "beta=0.2"])].

    What has a `=` belongs to the name before it. Names come in lower case, unchecked.
    """
    decoders: list[tuple[str, list[str]]] = []
    for part in text.split(","):
        name, colon, first = part.partition(":")
        if "=" not in name:
            decoders.append((name.strip().lower(), [first] if colon else []))
        elif decoders:
            decoders[-1][1].append(part)
        else:
            raise ValueError(f"the setting {part!r} stands before any decoder: name one first")
    return decoders


def choose(
    name: str,
    assignments: Sequence[str],
    decoders: Mapping[str, type] = DECODERS,
    others: Iterable[str] = (),
) -> Request:
    """A decoder of a name and its `name=value` settings.

    Args:
        name: In lower case.
        assignments: Each of one setting.
        decoders: What the names stand for.
        others: Names that the caller knows besides, for the message on a wrong one.

    Raises:
        ValueError: For an unknown name or setting, listing those that exist; for a value of
            another type, and for a setting that is given twice.
    """
    if name not in decoders:
        raise unknown("decoder", name, (*others, *decoders))
    kind = decoders[name]
    texts = split_assignments(name, assignments)
    known = settable(kind)
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
        chosen = known[key].reader
        try:
            values[key] = chosen.read(text)
        except ValueError:
            raise ValueError(f"{key} of {name} must be {chosen.wanted}, got {text!r}") from None
    written = ",".join(f"{key}={text}" for key, text in texts.items())
    return Request(f"{name}:{written}" if written else name, kind, values)


def split_assignments(name: str, assignments: Iterable[str]) -> dict[str, str]:
    """`["alpha=0.5", "beta=0.2"]` -> texts by setting."""
    texts: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not key:
            raise ValueError(f"a setting of {name} is written NAME=VALUE, got {assignment!r}")
        if key in texts:
            raise ValueError(f"{key} of {name} is set twice")
        texts[key] = text
    return texts


def unknown(what: str, name: str, names: Iterable[str]) -> ValueError:
    """For a name that does not exist: says the nearest one that does, and all of them."""
    known = list(names)
    near = get_close_matches(name, known, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    there = f"there are {', '.join(known)}" if known else "there is none"
    return ValueError(f"no {what} is called {name!r}{guess}: {there}")


# What can be set


@dataclass(frozen=True)
class Reader:
    """Turns a setting's text into a value; raises `ValueError` for what is not `wanted`."""

    wanted: str
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Setting:
    """A decoder's setting that can be written as text, and its default as one would write it."""

    name: str
    default: str
    reader: Reader


def settable(kind: type) -> dict[str, Setting]:
    """The settings of a decoder that can be written as text, by name."""
    hints = get_type_hints(kind)
    readers = {f: reader(hints[f.name]) for f in fields(kind) if f.init and f.name != FILLED}
    return {f.name: Setting(f.name, default_text(f), r) for f, r in readers.items() if r}


def default_text(setting: Field) -> str:
    """A field's default as one would write it; "required" and "empty" where nothing is written."""
    value = setting.default
    if setting.default_factory is not MISSING:
        value = setting.default_factory()
    if value is MISSING:
        return "required"
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "empty"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def reader(hint: Any) -> Reader | None:
    """How a value of a type is read; None for types that cannot be written as text."""
    if hint in READERS:
        return READERS[hint]
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        one, *more = (part for part in parts if part is not types.NoneType)
        inner = None if more else reader(one)
        return inner and Reader(f"{inner.wanted} or none", partial(read_optional, inner.read))
    if kind is tuple and parts[1:] == (...,):
        inner = reader(parts[0])
        return inner and Reader(
            f"{inner.wanted}, or several joined by +", partial(read_several, inner.read)
        )
    return None


def read_truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def read_optional(read: Callable[[str], Any], text: str) -> Any:
    return None if text.lower() == "none" else read(text)


def read_several(read: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    return tuple(read(part.strip()) for part in text.split("+")) if text else ()


READERS = {
    float: Reader("a number", float),
    int: Reader("a whole number", int),
    bool: Reader("true or false", read_truth),
    str: Reader("text", str),
}
