"""Settings and presets of a decoder's class, and their values as text.

A decoder's fields are its settings, and its class methods that make one are its presets. The type
of a field says how its text is read (`Reader`), its `SearchRange` where it is usually tried.
"""

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sightline.engine.search_range import SearchRange
from sightline.spec_text import escaped, split, unescaped

FILLED = "processor"
"""The field that is filled in and not set by users."""
STAND_IN = types.SimpleNamespace(unk_token_id=0)
"""In the processor's place where a decoder is made to be looked at, and never run."""


@dataclass(frozen=True)
class Reader:
    """Turns a setting's text into a value; raises `ValueError` for what is not `wanted`."""

    wanted: str
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Setting:
    """A decoder's setting that can be written as text.

    Args:
        name: Of the field.
        kind: Its type, as annotated.
        value: Its default; `MISSING` where there is none.
        reader: Of its text.
        usual: The range in which it is usually tried. None: none was noted.
    """

    name: str
    kind: Any
    value: Any
    reader: Reader
    usual: SearchRange | None = None

    @property
    def default(self) -> str:
        """The default as one would write it; "required" where there is none."""
        return "required" if self.value is MISSING else value_text(self.value)

    @property
    def choices(self) -> tuple[str, ...]:
        """All values that it may have; empty where they are not listed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Args:
        name: Of the class method.
        make: Makes the decoder.
        meaning: The first line of the method's docstring.
    """

    name: str
    make: Callable[[], Any]
    meaning: str

    def decoder(self, processor: Any) -> Any:
        """The decoder, made with the processor where the method takes one."""
        takes = {FILLED} & inspect.signature(self.make).parameters.keys()
        return self.make(**dict.fromkeys(takes, processor))

    def changes(self) -> dict[str, str]:
        """The settings that it does not leave at their default, as one would write them."""
        decoder = self.decoder(STAND_IN)
        kind: type = type(decoder)
        known = settable(kind)
        texts = {name: value_text(getattr(decoder, name)) for name in known}
        return {name: text for name, text in texts.items() if text != known[name].default}


@cache
def presets(kind: type) -> dict[str, Preset]:
    """The presets of a decoder by name: class methods that return one and need no arguments."""
    found = {}
    for member in inspect.classify_class_attrs(kind):
        if member.kind == "class method" and not member.name.startswith("_"):
            make = getattr(kind, member.name)
            made = get_type_hints(make).get("return")
            if isinstance(made, type) and issubclass(kind, made) and needs_nothing(make):
                meaning = (inspect.getdoc(make) or "").partition("\n")[0]
                found[member.name] = Preset(member.name, make, meaning)
    return found


def needs_nothing(make: Callable[..., Any]) -> bool:
    """Whether it can be called without arguments, or with a processor alone."""
    try:
        signature = inspect.signature(make)
        signature.bind(**dict.fromkeys({FILLED} & signature.parameters.keys()))
    except TypeError:
        return False
    return True


@cache
def settable(kind: type) -> dict[str, Setting]:
    """The settings of a decoder that can be written as text, by name."""
    kinds, noted = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    own = [each for each in fields(kind) if each.init and each.name != FILLED]
    found = (setting(each, kinds[each.name], noted[each.name]) for each in own)
    return {each.name: each for each in found if each}


def setting(field: Field, kind: Any, noted: Any) -> Setting | None:
    """A field as a setting, by its type without and with notes.

    None for types that cannot be written as text.
    """
    notes = get_args(noted)[1:] if get_origin(noted) is Annotated else ()
    usual = next((note for note in notes if isinstance(note, SearchRange)), None)
    value = field.default if field.default_factory is MISSING else field.default_factory()
    known = reader(kind)
    return None if known is None else Setting(field.name, kind, value, known, usual)


def value_text(value: Any) -> str:
    """A value as one would write it; "empty" where nothing is written."""
    return written(value) or "empty"


def written(value: Any) -> str:
    """A value as its reader reads it."""
    if isinstance(value, tuple):
        return "+".join(map(written, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return escaped(value) if isinstance(value, str) else str(value)


def reader(hint: Any) -> Reader | None:
    """How a value of a type is read; None for types that cannot be written as text."""
    if hint in READERS:
        return READERS[hint]
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return Reader(f"one of {', '.join(parts)}", partial(read_choice, parts))
    if get_origin(hint) in (Union, types.UnionType):
        return read_as_one_of(parts)
    if get_origin(hint) not in (tuple, Sequence) or not parts:
        return None
    if get_origin(hint) is Sequence or parts[1:] == (...,):
        inner = reader(parts[0])
        return inner and Reader(
            f"{inner.wanted}, or several joined by +", partial(read_several, inner.read)
        )
    inners = [reader(part) for part in parts]
    known = [inner for inner in inners if inner]
    if len(known) < len(parts):
        return None
    wanted = " + ".join(inner.wanted for inner in known)
    return Reader(wanted, partial(read_each, [inner.read for inner in known]))


def read_as_one_of(hints: Sequence[Any]) -> Reader | None:
    """A union's reader: of the types that a text fits, the narrowest."""
    kinds = [hint for hint in hints if hint is not types.NoneType]
    readers = {hint: inner for hint in kinds if (inner := reader(hint))}
    if len(readers) < len(kinds):
        return None
    reads = [readers[hint].read for hint in sorted(kinds, key=width)]
    optional = len(kinds) < len(hints)
    wanted = " or ".join([*(readers[hint].wanted for hint in kinds), *["none"] * optional])
    return Reader(wanted, partial(read_first, reads, optional))


def width(hint: Any) -> int:
    """The place of a type's scalars in `READERS`, where each fits more texts than those before.

    The words of a closed set come before them all.
    """
    if get_origin(hint) is Literal:
        return -1
    if hint in READERS:
        return list(READERS).index(hint)
    return max(width(part) for part in get_args(hint) if part not in (..., types.NoneType))


def read_truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def read_choice(choices: Sequence[str], text: str) -> str:
    if text not in choices:
        raise ValueError(text)
    return text


def read_first(reads: Sequence[Callable[[str], Any]], optional: bool, text: str) -> Any:
    if optional and text.lower() == "none":
        return None
    for read in reads:
        try:
            return read(text)
        except ValueError:
            continue
    raise ValueError(text)


def read_several(read: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    return tuple(read(part.strip()) for part in split(text, "+")) if text else ()


def read_each(reads: Sequence[Callable[[str], Any]], text: str) -> tuple[Any, ...]:
    parts = split(text, "+")
    return tuple(read(part.strip()) for read, part in zip(reads, parts, strict=True))


READERS = {
    int: Reader("a whole number", int),
    float: Reader("a number", float),
    bool: Reader("true or false", read_truth),
    str: Reader("text", unescaped),
}
