"""Values in messages of errors: enough of them to be recognised, never all of them."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

LONGEST = 80  # characters of one value

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = LONGEST


def short(value: Any) -> str:
    """`repr`, cut in its middle where it is long: a text of megabytes is shown by its two ends."""
    try:
        text = _REPR.repr(value)
    except Exception:  # a number of too many digits, or a class that cannot be shown
        text = f"a value of type {type(value).__name__}"
    return clipped(text, 2 * LONGEST)


def clipped(text: Any, longest: int = LONGEST) -> str:
    """A text as it is, cut in its middle where it has more than `longest` characters."""
    text = str(text)
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def enumerated(values: Iterable[Any], most: int = 20) -> str:
    """Names joined by commas, the first `most` of them."""
    names = [clipped(value, LONGEST // 2) for value in values]
    return clipped(", ".join(names[:most]) + (", ..." if len(names) > most else ""), 3 * LONGEST)


def check_list(name: str, values: Any, example: str) -> None:
    """Raises `ValueError` for a text where a list is meant: its letters would be the members."""
    if isinstance(values, str | bytes):
        raise ValueError(f"{name} must be a list such as {example}, got the text {short(values)}")


def check_characters(text: str, what: str) -> None:
    """Raises `ValueError` for text that UTF-8 cannot hold: half a character, or another encoding.

    What a command line or a file name holds in another encoding is such text in Python.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half a character at {error.start} ({text[error.start]!r}), which no "
            "text in UTF-8 has: write it in UTF-8"
        ) from None


def unknown(what: str, name: Any, names: Iterable[str]) -> ValueError:
    """For a name that does not exist: says the nearest one that does, and all of them."""
    known = list(names)
    near = get_close_matches(str(name), known, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    there = f"there are {', '.join(known)}" if known else "there is none"
    return ValueError(f"no {what} is called {short(name)}{guess}: {there}")
