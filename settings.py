"""Validation of settings: each field of a decoder or a part, by its declared type and limits.

A class says what its fields may be beside their types, as `alpha: Strength = 1.0` or
`layers: Layers | None = None`, and derives from `Checked`. The ranges that are usually searched are
declared apart from that (`engine/search_range.py`): `alpha=4` is legal where 0 to 3 is usual.

numpy's numbers become Python's, and lists become tuples. True and False are no numbers; infinities
and NaN are never legal.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from sightline.messages import short

MOST = 10**9
"""The largest number: beyond it float32 holds nothing of the scores that it is weighed against."""
LEAST = 1e-30
"""The smallest number that is divided by: what is divided stays finite in float32."""
LARGEST_COUNT = 10**6
LARGEST_ID = 2**31 - 1
LARGEST_SEED = 2**63 - 1


class Checked:
    """Base of dataclasses whose fields are checked by their types and limits when one is made.

    A class with a `__post_init__` of its own calls `super().__post_init__()` first, and then
    checks what concerns several fields.
    """

    def __post_init__(self):
        settle(self)


@dataclass(frozen=True)
class Limits:
    """The numbers that a field takes, noted beside its type: `Annotated[float, Limits(0, 1)]`.

    Args:
        low: The smallest one.
        high: The largest one.
        above: Only numbers above `low`.
        below: Only numbers below `high`.
    """

    low: float = -MOST
    high: float = MOST
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        is_low = value < self.low or (self.above and value == self.low)
        is_high = value > self.high or (self.below and value == self.high)
        return not (is_low or is_high)

    def words(self, kind: Any) -> str:
        if kind is int:
            return f"a whole number from {self.low} to {self.high}"
        if self.high == MOST:
            return f"a finite number {'>' if self.above else '>='} {self.low:g}, at most {MOST:g}"
        first, last = "(" if self.above else "[", ")" if self.below else "]"
        return f"in {first}{self.low:g}, {self.high:g}{last}"


@dataclass(frozen=True)
class Wanted:
    """What a field takes beyond its type, noted beside it.

    Args:
        text: All that is wanted, in words that follow "must be".
        holds: Of a value of the type.
    """

    text: str
    holds: Callable[[Any], bool] = lambda value: True

    def words(self, kind: Any) -> str:
        return self.text


def holding(*parts: str) -> Wanted:
    """Text that is not blank and holds each of these parts."""
    text = f"a text that holds {' and '.join(parts)}" if parts else "a text that is not blank"
    return Wanted(text, lambda value: bool(value.strip()) and all(part in value for part in parts))


def _is_processor(value: Any) -> bool:
    """Whether it has what decoders ask a processor or a tokenizer for."""
    names = ("tokenizer", "apply_chat_template", "batch_decode", "unk_token_id")
    return not isinstance(value, type) and any(hasattr(value, name) for name in names)


UnitInterval = Annotated[float, Limits(0, 1)]
Share = Annotated[float, Limits(0, 1, above=True)]
Strength = Annotated[float, Limits(0)]
Positive = Annotated[float, Limits(LEAST)]
Whole = Annotated[int, Limits(0, LARGEST_COUNT)]
Count = Annotated[int, Limits(1, LARGEST_COUNT)]
Seed = Annotated[int, Limits(-LARGEST_SEED, LARGEST_SEED)]
TokenId = Annotated[int, Limits(0, LARGEST_ID)]
Markers = Annotated[tuple[TokenId, ...], Wanted("token ids, in a tuple or list")]
Layers = Annotated[
    tuple[Whole, Whole],
    Wanted(
        "(first, first after), layer numbers in ascending order",
        lambda pair: pair[0] < pair[1],
    ),
]
Words = Annotated[str, holding()]
Processor = Annotated[
    Any,
    Wanted(
        "the model's processor or tokenizer, as processor=AutoProcessor.from_pretrained(...)",
        _is_processor,
    ),
]


def settle(part: Any) -> None:
    """Checks every field of a dataclass that is set at construction, and keeps Python's numbers.

    Raises `ValueError` with the field's name, what is wanted and what came.
    """
    kind: Any = type(part)
    hints = hints_of(kind)
    for each in fields(part):
        if not each.init or each.name not in hints:
            continue
        hint, value = hints[each.name], getattr(part, each.name)
        try:
            kept = _fitted(hint, value)
        except _Unfit:
            raise wrong(each.name, _words(hint), value) from None
        if kept is not value:
            object.__setattr__(part, each.name, kept)  # parts are frozen


@lru_cache(maxsize=256)
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class with their notes, without those that only a type checker reads."""
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError:
        return {each.name: each.type for each in fields(kind) if not isinstance(each.type, str)}


def wrong(name: str, wanted: str, value: Any) -> ValueError:
    """What to raise, in one short sentence whatever the value."""
    got = " ".join(short(value).split())
    return ValueError(f"{name} must be {wanted}, got {got}")


class _Unfit(Exception):
    """A value that its declared type does not take."""


def _fitted(hint: Any, value: Any) -> Any:
    """The value as its declared type keeps it; raises `_Unfit` for another."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kept = _fitted(args[0], value)
        if not all(note.holds(kept) for note in args[1:] if isinstance(note, Limits | Wanted)):
            raise _Unfit
        return kept
    if origin in (Union, types.UnionType):
        return _fitted_to_one(args, value)
    if origin is Literal:
        plain = str(value) if isinstance(value, str) else value
        return _required(any(type(x) is type(plain) and x == plain for x in args), plain)
    if origin in (tuple, Sequence):
        return _fitted_parts(origin, args, value)
    if hint in _KINDS:
        return _KINDS[hint](value)
    kind = origin or hint
    if kind is Callable:
        return _required(callable(value) and not isinstance(value, type), value)
    return _required(not isinstance(kind, type) or isinstance(value, kind), value)


def _required(holds: bool, value: Any) -> Any:
    if not holds:
        raise _Unfit
    return value


def _fitted_to_one(hints: Sequence[Any], value: Any) -> Any:
    for hint in hints:
        try:
            return _fitted(hint, value)
        except _Unfit:
            continue
    raise _Unfit


def _fitted_parts(origin: Any, hints: Sequence[Any], value: Any) -> tuple[Any, ...]:
    _required(isinstance(value, tuple | list), value)
    if origin is Sequence or hints[1:] == (...,):
        hints = [hints[0]] * len(value)
    _required(len(hints) == len(value), value)
    return tuple(_fitted(hint, each) for hint, each in zip(hints, value, strict=True))


def _whole(value: Any) -> int:
    _required(isinstance(value, Integral) and not isinstance(value, bool), value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, Integral):
        return _whole(value)
    _required(isinstance(value, Real), value)
    try:
        number = float(value)
    except OverflowError:  # a fraction
        raise _Unfit from None
    return _required(-np.inf < number < np.inf, number)


def _truth(value: Any) -> bool:
    return bool(_required(isinstance(value, bool | np.bool_), value))


def _text(value: Any) -> str:
    """Text that can be encoded: half a surrogate pair is none."""
    _required(isinstance(value, str), value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unfit from None
    return str(value)


def _nothing(value: Any) -> None:
    return _required(value is None, value)


_KINDS: dict[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    bool: _truth,
    str: _text,
    types.NoneType: _nothing,
    Any: lambda value: value,
}
_WORDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}


def _words(hint: Any) -> str:
    """What a declared type takes, in words that follow "must be"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        notes = [note for note in args[1:] if isinstance(note, Limits | Wanted)]
        return notes[-1].words(args[0]) if notes else _words(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is Sequence or (origin is tuple and args[1:] == (...,)):
        return f"a tuple or list, each {_words(args[0])}"
    if origin is tuple:
        return f"({', '.join(map(_words, args))})"
    if hint in _WORDS:
        return _WORDS[hint]
    if hint is types.NoneType:
        return "None"
    kind = origin or hint
    return "a part that can be called" if kind is Callable else f"a {kind.__name__}"
