"""Decoders from text: `vdd`, `vdd:variant=unk`, `vcd:alpha=0.5,noise_step=999`."""

import difflib
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from sightline.decoders import DECODERS
from sightline.decoders.decoder import Decoder

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
TYPED = (bool, int, float, str)


def parse_decoder(
    text: str, processor: Any = None, decoders: Mapping[str, type] = DECODERS
) -> tuple[str, Any]:
    """`name:key=value,key=value` -> (label, decoder).

    The label is the text without spaces and with the name in lower case: what a table calls it.

    Args:
        text: A name alone, or a name with settings. A value of several numbers is written
            `markers=5,6`.
        processor: Handed to decoders that take one.
        decoders: What the names stand for.

    Raises:
        ValueError: For an unknown name or setting, listing those that exist; for a value of
            another type; and what the decoder itself says of its settings.
    """
    name, settings = split_settings(text)
    label = name + (":" + ",".join(f"{k}={v}" for k, v in settings.items()) if settings else "")
    return label, make_decoder(name, settings, processor, decoders)


def make_decoder(
    name: str,
    settings: Mapping[str, str],
    processor: Any = None,
    decoders: Mapping[str, type] = DECODERS,
) -> Any:
    """The decoder of a name with settings given as text; see `parse_decoder`."""
    if name not in decoders:
        raise ValueError(unknown("decoder", name, decoders))
    kind = decoders[name]
    types_of = setting_types(kind)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in types_of:
            raise ValueError(unknown(f"setting of {name}", key, types_of))
        values[key] = typed(f"{name}: {key}", value, types_of[key])
    if processor is not None and "processor" in inspect.signature(kind).parameters:
        values["processor"] = processor
    return kind(**values)


def split_settings(text: str) -> tuple[str, dict[str, str]]:
    """`name:key=value,key=value` -> the lower-case name and its settings as text.

    A part without `=` belongs to the value before it, so `markers=5,6` is one setting.
    """
    name, colon, rest = text.partition(":")
    settings: dict[str, str] = {}
    key = ""
    for part in rest.split(",") if colon else ():
        before, equals, after = (piece.strip() for piece in part.partition("="))
        if equals and before in settings:
            raise ValueError(f"{text!r} sets {before} twice")
        if equals and before:
            key, settings[before] = before, after
        elif key and before and not equals:
            settings[key] += f",{before}"
        else:
            raise ValueError(f"settings are written name:key=value,key=value, got {text!r}")
    return name.strip().lower(), settings


def setting_types(decoder: type[Decoder]) -> dict[str, Any]:
    """The settings that can be given as text, with their annotated types."""
    hints = get_type_hints(decoder.__init__)
    names = list(inspect.signature(decoder).parameters)
    return {name: hints[name] for name in names if is_typed(hints.get(name))}


def is_typed(annotation: Any) -> bool:
    """Whether text can be turned into the annotated type."""
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return all(is_typed(a) for a in get_args(annotation) if a not in (type(None), ...))
    return annotation in TYPED


def typed(what: str, value: str, annotation: Any) -> Any:
    """Text as the annotated type; raises `ValueError` that names `what` where it is none."""
    if get_origin(annotation) in (Union, types.UnionType):
        options = get_args(annotation)
        if type(None) in options and value.lower() == "none":
            return None
        return typed(what, value, next(o for o in options if o is not type(None)))
    if get_origin(annotation) is tuple:
        parts = [part for part in value.split(",") if part]
        return tuple(typed(what, part, get_args(annotation)[0]) for part in parts)
    try:
        return BOOLEANS[value.lower()] if annotation is bool else annotation(value)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[annotation]
        raise ValueError(f"{what} must be {wanted}, got {value!r}") from None


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest one that does, and all of them."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"no {what} is called {name!r};{hint} there are {', '.join(known)}"
