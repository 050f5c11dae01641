"""Python source, written as `ruff format` leaves it."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

WIDTH = 100
INDENT = 4


class Piece(Protocol):
    """An expression, on one line or on several."""

    @property
    def flat(self) -> str:
        """On one line."""
        ...

    def lines(self, indent: int = 0, lead: str = "", tail: str = "") -> list[str]:
        """With what stands before and behind it, on one line where it fits."""
        ...


@dataclass(frozen=True)
class Code:
    """A short expression, which is never broken."""

    flat: str

    def lines(self, indent: int = 0, lead: str = "", tail: str = "") -> list[str]:
        return [" " * indent + lead + self.flat + tail]


@dataclass(frozen=True)
class Text:
    """A string, in parts where it is long."""

    text: str

    @property
    def flat(self) -> str:
        return literal(self.text)

    def lines(self, indent: int = 0, lead: str = "", tail: str = "") -> list[str]:
        whole = Code(self.flat).lines(indent, lead, tail)
        if fits(whole[0]):
            return whole
        inner = indent + INDENT
        parts = [" " * inner + literal(part) for part in cut(self.text, WIDTH - inner)]
        return [" " * indent + lead + "(", *parts, " " * indent + ")" + tail]


@dataclass(frozen=True)
class Group:
    """A call or a display: where it is long, each item has a line.

    Args:
        opening: A bracket, and what it belongs to.
        items: Each with what stands before it.
        closing: The other bracket.
    """

    opening: str
    items: tuple[tuple[str, Piece], ...]
    closing: str

    @property
    def flat(self) -> str:
        items = ", ".join(lead + item.flat for lead, item in self.items)
        is_single = self.opening == "(" and len(self.items) == 1
        return f"{self.opening}{items}{',' * is_single}{self.closing}"

    def lines(self, indent: int = 0, lead: str = "", tail: str = "") -> list[str]:
        whole = Code(self.flat).lines(indent, lead, tail)
        if fits(whole[0]) or not self.items:
            return whole
        inner = [item.lines(indent + INDENT, name, ",") for name, item in self.items]
        body = [line for lines in inner for line in lines]
        return [" " * indent + lead + self.opening, *body, " " * indent + self.closing + tail]


@dataclass(frozen=True)
class Sum:
    """Pieces that are added inside brackets: where it is long, each has a line."""

    parts: tuple[Piece, ...]

    @property
    def flat(self) -> str:
        return " + ".join(part.flat for part in self.parts)

    def lines(self, indent: int = 0, lead: str = "", tail: str = "") -> list[str]:
        whole = Code(self.flat).lines(indent, lead, tail)
        if fits(whole[0]):
            return whole
        *others, last = self.parts
        signs = ["", *["+ "] * len(others)]
        lines = [
            line
            for part, sign in zip(others, signs, strict=False)
            for line in part.lines(indent, sign)
        ]
        return [*lines, *last.lines(indent, signs[-1], tail)]


def group(opening: str, items: Sequence[Piece], closing: str) -> Group:
    return Group(opening, tuple(("", item) for item in items), closing)


def call(name: str, *given: Piece, **named: Any) -> Group:
    """`name(given, named=...)`; what is named is a piece or a value."""
    items = [("", item) for item in given]
    items += [(f"{key}=", piece(value)) for key, value in named.items()]
    return Group(f"{name}(", tuple(items), ")")


def assigned(name: str, value: Piece) -> list[str]:
    """`name = value`."""
    return value.lines(lead=f"{name} = ")


def piece(value: Any) -> Piece:
    """A value of a setting: a text, a number, a truth, None, or a tuple, list or dict of such."""
    if isinstance(value, Code | Text | Group):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, tuple):
        return group("(", [piece(part) for part in value], ")")
    if isinstance(value, list):
        return group("[", [piece(part) for part in value], "]")
    if isinstance(value, dict):
        items = tuple((f"{literal(key)}: ", piece(part)) for key, part in value.items())
        return Group("{", items, "}")
    if isinstance(value, float) and not math.isfinite(value):
        return Code(f'float("{value}")')
    return Code(repr(value))


def literal(text: str) -> str:
    """A string literal, in the quotes that need fewer escapes."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    signs = (f"\\{quote}" if sign == quote else repr(sign)[1:-1] for sign in text)
    return f"{quote}{''.join(signs)}{quote}"


def cut(text: str, width: int) -> list[str]:
    """The text in parts whose literals are not wider, behind blanks where there are some."""
    parts = [""]
    for sign in text:
        if columns(literal(parts[-1] + sign)) > width:
            kept, blank, rest = parts[-1].rpartition(" ")
            parts[-1:] = [kept + blank, rest] if kept.strip() else [parts[-1], ""]
        parts[-1] += sign
    return parts


def fits(line: str) -> bool:
    return columns(line) <= WIDTH


def columns(line: str) -> int:
    """How wide it stands on a screen, where signs of East Asia are two columns wide."""
    return sum(1 + (unicodedata.east_asian_width(sign) in "WF") for sign in line)
