"""Wrong settings of every decoder and part: each is refused at construction, in words of ours.

    python benchmarks/attack_settings.py [--short]

Values are made of each field's annotated type, and of nothing that checks it: what is no number
where one is wanted, NaN and infinities, what is beyond every limit, other containers and nested
ones. Text is what `sightline --decoder name:field=text` reads. An error is ours if a `raise` of the
package made it, as `ValueError` or `TypeError`, and its message is one short line with the field's
name.
"""

import argparse
import dataclasses
import inspect
import linecache
import math
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

import sightline
from sightline.decoders import DECODERS
from sightline.json_text import json_text
from sightline.model_protocol import UnsupportedModelError
from sightline.setting_text import settable
from sightline.specs import Method

TRIES, TRIES_SHORT = 2000, 200
LONGEST = 250
PACKAGE = Path(sightline.__file__).parent
# What a call hands to parts and back, and an error: no settings.
DATA = {"Branch", "KeyWeights", "Needs", "State", "UnsupportedModelError"}
TOKENIZER = types.SimpleNamespace(unk_token_id=0)
NEEDED: dict[str, dict[str, Any]] = {
    "BlipMatcher": dict(model=None, processor=types.SimpleNamespace(tokenizer=None)),
    "CalibrationProcessor": dict(labels=[[1], [2]], weight=torch.ones(2), prompt_length=4),
    "EmbeddingContrast": dict(model=None),
    "Gated": dict(decoder=sightline.VDD()),
    "ImageGain": dict(alpha=0.2),
    "ImageScale": dict(image=1.2, system=0.9),
    "PlausibilityProcessor": dict(beta=0.1),
    "PromptCached": dict(decoder=sightline.VDD()),
    "Unattended": dict(hiding=sightline.LeastAttended()),
    "UnknownImage": dict(tokens=(7,)),
}
SIGNED = {"seed", "suppress", "enhance"}  # may be negative
MAY_BE_EMPTY = {"markers", "preparations", "contrasts", "attention_edits", "cache_evictions"}
MAY_BE_BLANK = {"suffix"}

ODD = [
    *(math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("-inf"), 1e308, -1e308),
    *(10**400, -(10**400), Fraction(10**400), Decimal("0.5"), 1j, object(), ..., int, len),
    *(b"x", {}, {"a": 1}, set(), {1}, range(3), iter([1]), types.SimpleNamespace(a=1)),
    *(np.array(0.5), np.array(1), np.array("a"), np.ones(3), torch.tensor(1.0), torch.ones(2, 3)),
    *([[[]]], [{}], [None], (math.nan,), [math.inf], ((),), [[1, [2]]], (object(),), [1e308] * 2),
]
TRUTHS = [True, False, np.bool_(True)]
TEXTS = ["", "a", "1", "nan", "0.5", np.str_("0.5"), "\ud800"]
FRACTIONS = [1.5, np.float64(2.5), Fraction(1, 2)]
LISTS = [[], (), [1], (0.5,), ["a"]]


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One wrong setting.

    Args:
        where: The class or the decoder's name, and the field.
        value: As Python's value, or as text.
        make: Makes the decoder or part with it.
    """

    where: str
    value: Any
    make: Callable[[], Any]

    @property
    def field(self) -> str:
        return self.where.partition(".")[2]


def public_settings() -> Iterator[type]:
    """Every public class that is made with settings."""
    for name in sightline.__all__:
        kind = getattr(sightline, name)
        if inspect.isclass(kind) and not inspect.isabstract(kind) and name not in DATA:
            yield kind


def parameters(kind: type) -> dict[str, Any]:
    """What a class is made with: names -> types without notes."""
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    return {name: hints[name] for name in inspect.signature(kind).parameters if name in hints}


def alternatives(hint: Any) -> list[Any]:
    """The types of a union; of another type itself."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def wrong_values(name: str, hint: Any, default: Any) -> Iterator[Any]:
    """Values that a field of this type cannot mean anything by."""
    kinds = alternatives(hint)
    lists = [kind for kind in kinds if get_origin(kind) in (tuple, Sequence)]
    numbers = {int, float} & set(kinds)
    words = any(kind is str or get_origin(kind) is Literal for kind in kinds)
    yield from ODD
    yield from ([1, 0, 1.0, "true"] if bool in kinds else TRUTHS)
    if types.NoneType not in kinds and default is not None:
        yield None
    if not words:
        yield from TEXTS
    elif str not in kinds:
        yield from ["no such word", "", "None"]
    elif name not in MAY_BE_BLANK:
        yield from ["", " \n", "\ud800"]
    if numbers == {int}:
        yield from FRACTIONS
    if not numbers and bool not in kinds:
        yield from [0, 1, -1, 0.5, np.int64(1)]
    elif bool not in kinds and name not in SIGNED:
        yield from [-1, -0.5, np.int64(-1)]
    yield from LISTS if not lists else wrong_lists(name, lists)


def wrong_lists(name: str, kinds: Sequence[Any]) -> Iterator[Any]:
    """Lists that are none of these types, and what is no list."""
    inner = {part for kind in kinds for part in get_args(kind) if part is not ...}
    yield from [0.5, {"a": 1}.keys(), np.array([1]), [[1]], (True,), [None, None], [[]], "12"]
    if name not in MAY_BE_EMPTY:
        yield from [(), []]
    if str not in inner:
        yield from [("a", "b"), ["1", "2"], (-1,), [-1, -2]]
    else:
        yield from [(1, 2), "ab", ["a", 5], ["a", ""], ["a", "\ud800"]]
    if inner == {int}:
        yield from [(1.5,), [0.5, 1.5], (10**400, 10**401)]


def wrong_python() -> Iterator[Wrong]:
    """Wrong values of every field of every public class."""
    for kind in public_settings():
        given = dict(NEEDED.get(kind.__name__, {}))
        known = parameters(kind)
        if "processor" in known:
            given.setdefault("processor", TOKENIZER)
        signature = inspect.signature(kind).parameters
        for name, hint in known.items():
            for value in wrong_values(name, hint, signature[name].default):
                made = {**given, name: value}
                yield Wrong(f"{kind.__name__}.{name}", value, lambda k=kind, m=made: k(**m))


def wrong_texts(name: str, hint: Any) -> Iterator[str]:
    """Texts that a field of this type cannot mean anything by."""
    kinds = alternatives(hint)
    if str in kinds:
        yield from ["\ud800"] if name in MAY_BE_BLANK else ["\ud800", "", " "]
        return
    inner = {part for kind in kinds for part in get_args(kind)}
    if get_origin(hint) is not Sequence or str not in inner:
        yield from ["nan", "inf", "-inf", "1e308", "-1e308", "1e999", "nan+nan", "1e999+1"]
        yield from ["a", "1+a", "+", "1++2", "None+1", "[]", "{}", "1;2", "0x1f", "\ud800"]
        yield "9" * 5000
    if not any(kind in (int, float) for kind in (*kinds, *inner)):
        yield from ["2", "-1", "0.5"] if bool in kinds else ["1", "", "true"]
    elif name not in SIGNED and str not in inner:
        yield from ["-1", "-0.5", "true"]
    if name not in MAY_BE_EMPTY:
        yield from ["", " "]
    if types.NoneType not in kinds and str not in inner:
        yield "none" if "none" not in get_args(hint) else "None"


def wrong_text() -> Iterator[Wrong]:
    """Wrong texts of every setting that can be written as one."""
    for name, kind in DECODERS.items():
        for key, setting in settable(kind).items():
            for text in wrong_texts(key, setting.kind):
                yield Wrong(f"{name}.{key}", text, lambda n=name, k=key, t=text: build(n, k, t))


def build(name: str, key: str, text: str) -> Any:
    return Method(name, ((key, text),)).build(TOKENIZER)


def complaint(tried: Wrong) -> str:
    """What is wrong with how it was refused; "" where nothing is."""
    try:
        tried.make()
    except Exception as error:
        message = str(error)
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        assert trace is not None
        file, line = Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
        is_ours = file.is_relative_to(PACKAGE) and file != Path(__file__)
        if not isinstance(error, ValueError | TypeError) or not is_ours:
            return f"a foreign {type(error).__name__}: {message[:LONGEST]}"
        if not linecache.getline(str(file), line).strip().startswith("raise"):
            return f"{type(error).__name__} that nobody raised: {message[:LONGEST]}"
        if isinstance(error, UnsupportedModelError):
            return f"an error about a model: {message[:LONGEST]}"
        if tried.field not in message or len(message) > LONGEST or "\n" in message:
            return f"a message that does not help: {message[:LONGEST]}"
        return ""
    return "accepted"


def attack(short: bool) -> dict[str, Any]:
    """How wrong settings are refused, and whether all are as they should be ("passed")."""
    all_wrong = [*wrong_python(), *wrong_text()]
    tries = TRIES_SHORT if short else TRIES
    drawn = random.Random(0).sample(all_wrong, tries)
    found = [(tried, said) for tried in drawn if (said := complaint(tried))]
    accepted = sum(said == "accepted" for _, said in found)
    return {
        "wrong settings known": len(all_wrong),
        "tried": tries,
        "refused in our words": tries - len(found),
        "accepted": accepted,
        "refused otherwise": len(found) - accepted,
        "examples": [f"{tried.where}={tried.value!r:.60}: {said}" for tried, said in found[:10]],
        "passed": not found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help=f"{TRIES_SHORT} tries, not {TRIES}")
    found = attack(parser.parse_args().short)
    print(json_text(found, indent=1, ensure_ascii=True))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
