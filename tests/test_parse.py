"""Decoders from text: how they are split, what their settings become, and what is refused."""

import math
import re
from dataclasses import dataclass, field
from typing import Optional

import pytest

from sightline import VDD
from sightline.decoders import DECODERS
from sightline.decoders.parse import choose, settable, split_decoders, unknown


@dataclass
class Odd:
    """A class with a setting of every kind."""

    needed: int
    flag: bool = True
    ids: tuple[int, ...] = ()
    share: float | None = None
    words: tuple[str, ...] = ("yes", "no")
    made: tuple[int, ...] = field(default_factory=lambda: (1, 2))
    some: Optional[tuple[float, ...]] = None  # noqa: UP045, both spellings are read
    name: str = "x"
    processor: str = ""
    nested: dict | None = None
    either: int | str = 1
    pair: tuple[int, int] = (1, 2)
    fixed: int = field(default=1, init=False)


ODD = {"odd": Odd}


def asked(text, decoders=DECODERS):
    """The request of a text with one decoder."""
    [(name, assignments)] = split_decoders(text)
    return choose(name, assignments, decoders)


@pytest.mark.parametrize(
    ("text", "decoders"),
    [
        (" VDD ", [("vdd", [])]),
        ("vdd:markers=5+6,alpha=1", [("vdd", ["markers=5+6", "alpha=1"])]),
        (
            "greedy, VDD:alpha=0.5,variant=both,vcd,vdd:beta=0",
            [
                ("greedy", []),
                ("vdd", ["alpha=0.5", "variant=both"]),
                ("vcd", []),
                ("vdd", ["beta=0"]),
            ],
        ),
        ("a:x=b:c,y=d:e", [("a", ["x=b:c", "y=d:e"])]),
        ("vdd:markers=5,6", [("vdd", ["markers=5"]), ("6", [])]),
        ("vdd:", [("vdd", [""])]),
        ("", [("", [])]),
    ],
)
def test_commas_separate_settings_and_decoders(text, decoders):
    assert split_decoders(text) == decoders


def test_a_setting_belongs_to_a_decoder():
    with pytest.raises(ValueError, match="'alpha=1' stands before any decoder"):
        split_decoders("alpha=1,vdd")


def test_what_can_be_set_is_listed_with_its_default_and_type():
    assert {s.name: (s.default, s.reader.wanted) for s in settable(Odd).values()} == {
        "needed": ("required", "a whole number"),
        "flag": ("true", "true or false"),
        "ids": ("empty", "a whole number, or several joined by +"),
        "share": ("none", "a number or none"),
        "words": ("yes+no", "text, or several joined by +"),
        "made": ("1+2", "a whole number, or several joined by +"),
        "some": ("none", "a number, or several joined by + or none"),
        "name": ("x", "text"),
    }


@pytest.mark.parametrize("name", DECODERS)
def test_every_default_can_be_written(name):
    kind = DECODERS[name]
    for setting in settable(kind).values():
        text = "" if setting.default == "empty" else setting.default
        assert setting.reader.read(text) == getattr(kind(), setting.name)


def test_settings_take_the_type_of_their_field():
    text = "odd:needed=-2,flag=off,ids=4+5,share=none,words=a+b,made=,some=1e-3+2,name=none"
    request = asked(text, ODD)
    assert request.label == text
    assert request.build("a processor") == Odd(
        -2, False, (4, 5), None, ("a", "b"), (), (1e-3, 2.0), "none", "a processor"
    )
    assert asked("ODD: share = 0.5 ,ids = 7", ODD).label == "odd:share=0.5,ids=7"
    assert asked("odd:share=inf", ODD).settings == {"share": math.inf}
    assert asked("vdd:alpha=2").build(None) == VDD(alpha=2.0)


@pytest.mark.parametrize(
    ("texts", "value"),
    [(("true", "Yes", "on", "1"), True), (("false", "No", "off", "0"), False)],
)
def test_words_for_truth(texts, value):
    assert all(asked(f"odd:flag={text}", ODD).settings["flag"] is value for text in texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vddd", "no decoder is called 'vddd' (did you mean vdd?): there are vcd, vdd"),
        ("", "no decoder is called '': there are vcd"),
        (
            "vdd:alfa=1",
            "no setting of vdd is called 'alfa' (did you mean alpha?): there are alpha, beta, v",
        ),
        ("vdd:processor=1", "no setting of vdd is called 'processor'"),
        ("odd:processor=1", "no setting of odd is called 'processor'"),
        ("vdd:alpha=much", "alpha of vdd must be a number, got 'much'"),
        ("vdd:alpha==1", "alpha of vdd must be a number, got '=1'"),
        ("vdd:unk_token_id=x", "unk_token_id of vdd must be a whole number or none, got 'x'"),
        ("vdd:markers=3+", "markers of vdd must be a whole number, or several joined by +, got"),
        ("vcd:noise_step=1.5", "noise_step of vcd must be a whole number, got '1.5'"),
        ("vcd:noise_step=", "noise_step of vcd must be a whole number, got ''"),
        ("odd:flag=maybe", "flag of odd must be true or false, got 'maybe'"),
        ("vdd:alpha=1,alpha=2", "alpha of vdd is set twice"),
        ("vdd:", "a setting of vdd is written NAME=VALUE, got ''"),
        ("vdd:alpha", "a setting of vdd is written NAME=VALUE, got 'alpha'"),
        ("vdd:=1", "a setting of vdd is written NAME=VALUE, got '=1'"),
        ("vdd:alpha=-1", "vdd:alpha=-1: alpha must be a finite number >= 0"),
        ("odd", "odd: Odd.__init__() missing 1 required positional argument: 'needed'"),
    ],
)
def test_what_cannot_be_made_says_what_can(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        asked(text, {**DECODERS, **ODD}).build(None)


def test_other_names_are_listed_too():
    with pytest.raises(ValueError, match=r"did you mean greedy\?\): there are greedy, vcd, vdd"):
        choose("gredy", [], others=["greedy"])
    assert str(unknown("setting of it", "x", [])) == "no setting of it is called 'x': there is none"
