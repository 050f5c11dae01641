"""Words of a decoder's text: terms, ways, and what a backslash takes as it is. See `specs.py`."""

import re
from typing import Any

from sightline.decoders import NAMED

GREEDY, SAMPLE, BEAM = "greedy", "sample", "beam"
WAYS: dict[str, dict[str, Any]] = {
    GREEDY: {"do_sample": False, "num_beams": 1},
    SAMPLE: {"do_sample": True, "num_beams": 1},
    BEAM: {"do_sample": False, "num_beams": 3},
}
"""How tokens are taken, as `generate` is told."""


def is_term(text: str) -> bool:
    """Whether a text begins with the name of a decoder or a way."""
    name = text.partition(":")[0].strip().lower()
    is_name = re.fullmatch(r"[\w-]+(\.\w*)?", name) is not None
    return name in WAYS or (is_name and name.partition(".")[0] in NAMED)


def split(text: str, sign: str) -> list[str]:
    """The text in pieces, at each sign without a backslash before it."""
    if "\\" not in text:
        return text.split(sign)
    pieces = [""]
    for found in re.findall(r"\\.|.", text, re.DOTALL):
        if found == sign:
            pieces.append("")
        else:
            pieces[-1] += found
    return pieces


def unescaped(text: str) -> str:
    """Without the backslashes that take a sign or a name behind them as it is."""
    words = [word.replace("\\", "", 1) if is_masked(word) else word for word in split(text, "+")]
    return re.sub(r"\\([\\,+])", r"\1", "+".join(words))


def is_masked(word: str) -> bool:
    """Whether a backslash keeps a word from being the name of a decoder or a way."""
    return word.lstrip().startswith("\\") and is_term(word.lstrip()[1:])


def escaped(text: str) -> str:
    """The text that `unescaped` reads, with no `+` that separates."""
    return re.sub(r"([\\+])", r"\\\1", text)


def protected(text: str) -> str:
    """A setting's text as a spec holds it: no comma ends it, and no word of it is a term."""
    if (len(text) - len(text.rstrip("\\"))) % 2:
        text += "\\"
    first, *others = split("\\,".join(split(text, ",")), "+")
    words = [re.sub(r"(\S)", r"\\\1", each, count=1) if is_term(each) else each for each in others]
    return "+".join([first, *words])
