"""Checks of the numbers that decoders and their parts are set by.

Each takes a part and the name of one of its settings. A number of numpy's counts as one of Python's
and is kept as such; True and False, infinities and NaN are no numbers. What does not fit raises
`ValueError`.
"""

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from sightline.messages import short


def as_python(value: Any) -> Any:
    """A number as Python's own, also those in a tuple or list; anything else as it is."""
    if type(value) in (tuple, list):
        return type(value)(as_python(each) for each in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def settle(part: Any) -> None:
    """Makes all numbers among a dataclass's settings Python's own; checks none of them."""
    for each in fields(part):
        if each.init:
            _keep(part, each.name, as_python(getattr(part, each.name)))


def finite(part: Any, name: str) -> None:
    """Wants a finite number."""
    _number(part, name, "a finite number")


def in_unit_interval(part: Any, name: str) -> None:
    """Wants a number in [0, 1]."""
    value = _number(part, name, "in [0, 1]")
    if not 0 <= value <= 1:
        raise wrong(name, "in [0, 1]", value)


def share(part: Any, name: str) -> None:
    """Wants a number in (0, 1]."""
    value = _number(part, name, "in (0, 1]")
    if not 0 < value <= 1:
        raise wrong(name, "in (0, 1]", value)


def not_negative(part: Any, name: str) -> None:
    """Wants a finite number of at least 0."""
    value = _number(part, name, "a finite number >= 0")
    if value < 0:
        raise wrong(name, "a finite number >= 0", value)


def positive(part: Any, name: str) -> None:
    """Wants a finite number above 0."""
    value = _number(part, name, "a finite number > 0")
    if value <= 0:
        raise wrong(name, "a finite number > 0", value)


def whole(part: Any, name: str, least: int | None = None, most: int | None = None) -> None:
    """Wants a whole number, from `least` to `most` where these are given."""
    value = as_python(getattr(part, name))
    if not is_whole(value):
        raise wrong(name, "a whole number", value)
    if most is not None and not (least or 0) <= value <= most:
        raise wrong(name, f"between {least or 0} and {most}", value)
    if least is not None and value < least:
        raise wrong(name, f"{least} or more", value)
    _keep(part, name, value)


def whole_numbers(
    part: Any, name: str, wanted: str, *, empty: bool = False, different: bool = False
) -> None:
    """Wants whole numbers of at least 0, in a tuple or list; they are kept as a tuple.

    Args:
        wanted: What they are, in words.
        empty: Whether there may be none.
        different: Whether none may stand there twice.
    """
    values = as_python(getattr(part, name))
    if (
        not isinstance(values, tuple | list)
        or not (values or empty)
        or not all(is_whole(value) and value >= 0 for value in values)
        or (different and len(set(values)) < len(values))
    ):
        raise wrong(name, wanted, values)
    _keep(part, name, tuple(values))


def layer_range(part: Any) -> None:
    """Wants `layers` to be (first, first after): layer numbers, the first below the other."""
    wanted = "(first, first after), layer numbers with the first below the other"
    whole_numbers(part, "layers", wanted)
    if len(part.layers) != 2 or part.layers[0] >= part.layers[1]:
        raise wrong("layers", wanted, part.layers)


def wrong(name: str, wanted: str, value: Any) -> ValueError:
    """What to raise, in one short sentence whatever the value."""
    got = " ".join(short(value).split())
    return ValueError(f"{name} must be {wanted}, got {got}")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number of Python's, and no truth value."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _number(part: Any, name: str, wanted: str) -> float:
    """The setting as a finite number of Python's, which it is from now on."""
    value = as_python(getattr(part, name))
    if not is_number(value):
        raise wrong(name, wanted, value)
    _keep(part, name, value)
    return value


def _keep(part: Any, name: str, value: Any) -> None:
    object.__setattr__(part, name, value)  # parts are frozen
