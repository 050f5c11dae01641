"""Decoders and parts as plain values, and back: what JSON, configs and exported folders hold.

`{"class": "VDD", "alpha": 2.0, ...}`: the class by its name, and its settings. A part within a part
is written alike. No processor is written: whoever reads one back gives it.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import sightline
from sightline.messages import short, unknown
from sightline.settings import Checked

CLASS = "class"  # a keyword of Python's, so no setting can have this name
GIVEN = "processor"


def settings_of(kind: type) -> Iterator[Field]:
    """The fields that are written."""
    return (each for each in fields(kind) if each.init and each.name != GIVEN)


def parts_of(value: Any) -> Iterator[Checked]:
    """A decoder or part, and all parts in its settings."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from parts_of(each)
    elif isinstance(value, Checked) and is_dataclass(value):
        yield value
        for setting in settings_of(type(value)):
            yield from parts_of(getattr(value, setting.name))


def to_dict(part: Any) -> dict[str, Any]:
    """The class and the settings of a decoder or a part, as JSON has them.

    Raises:
        ValueError: A setting holds what is no value: a function, a model, another's object.
    """
    name = type(part).__name__
    values = {each.name: getattr(part, each.name) for each in settings_of(type(part))}
    return {CLASS: name, **{key: plain(value, f"{name}.{key}") for key, value in values.items()}}


def plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(each, f"{place}[{number}]") for number, each in enumerate(value)]
    if isinstance(value, Checked) and is_dataclass(value):
        return to_dict(value)
    raise ValueError(
        f"{place} is {short(value)}, and only numbers, texts and the library's own parts can be "
        "written: leave it out, or keep the decoder by pickle"
    )


def from_dict(values: Any, processor: Any = None, own: type | None = None) -> Any:
    """What `to_dict` wrote, made again, its settings checked as always.

    Args:
        values: From anywhere. Settings that are missing keep their defaults.
        processor: For the decoder, and the parts, that take one.
        own: A class that is known beside those of `sightline`.

    Raises:
        ValueError: It is no such mapping, names no class, no setting or no value that there is.
    """
    if not isinstance(values, Mapping) or CLASS not in values:
        raise ValueError(
            f"a decoder is written as {{'{CLASS}': 'VDD', 'alpha': 1.0}}, the name of its class "
            f"and its settings, got {short(values)}"
        )
    kind = class_called(values[CLASS], own)
    known = {each.name: each for each in settings_of(kind)}
    settings = {}
    for name, value in values.items():
        if name != CLASS:
            if name not in known:
                raise unknown(f"setting of {kind.__name__}", name, known)
            settings[name] = made(value, processor)
    for name, each in known.items():
        if name not in settings and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{kind.__name__} needs {name}, got {short(dict(values))}")
    takes = {GIVEN} & {each.name for each in fields(kind)}
    return kind(**settings, **dict.fromkeys(takes, processor))


def made(value: Any, processor: Any) -> Any:
    """A setting's value, its parts made."""
    if isinstance(value, Mapping):
        return from_dict(value, processor)
    return [made(each, processor) for each in value] if isinstance(value, list | tuple) else value


def class_called(name: Any, own: type | None = None) -> Any:
    """A decoder's or a part's class; those of `sightline` are found by their public names."""
    if own is not None and name == own.__name__:
        return own
    kind = getattr(sightline, name) if name in sightline.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, Checked) and is_dataclass(kind)):
        kind = None
    if kind is None or inspect.isabstract(kind):
        names = [each for each in sightline.__all__ if each[0].isupper()]
        raise unknown("decoder or part", name, names)
    return kind
