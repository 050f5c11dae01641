"""Decoders from text: how they are split, what their settings become, and what is refused."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Annotated, Literal, Optional, get_args

import pytest

from sightline import (
    AGLA,
    CARVE,
    DAMRO,
    ICD,
    M3ID,
    MVP,
    PAI,
    SID,
    VAF,
    VCD,
    VDD,
    VDGD,
    DeCo,
    DoLa,
    PostHocDebias,
    VASparse,
)
from sightline.decoders import DECODERS, NAMED
from sightline.docstrings import paper, read_arguments
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import RecipeStrategy
from sightline.messages import unknown
from sightline.setting_text import STAND_IN, presets, settable, written
from sightline.spec_text import WAYS
from sightline.specs import Spec, find, parse_spec, parse_specs


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
    loose: str | bool | float | int | None = None
    path: str | tuple[int, ...] = "low"
    window: tuple[float, float] | tuple[int, int] = (0.5, 1.0)
    mixed: tuple[int, str] | None = None
    open: tuple[int, dict] = (1, {})
    half: int | dict = 1
    several: Sequence[str] = ("a", "b c.")
    weights: Sequence[float] | None = None
    silent: str = ""
    mode: Literal["fast", "slow"] = "fast"
    many: int | Literal["all", "7"] = 1
    strength: Annotated[float, "a note", SearchRange(0, 2.5)] = 1.0
    maybe: Annotated[int | None, SearchRange(1, 9)] = None

    @classmethod
    def small(cls) -> "Odd":
        """A needed 1.

        Nothing more is shown.
        """
        return cls(1, ids=(4, 5), share=0.5)

    @classmethod
    def optional(cls, needed: int = 2, *more, **others) -> "Odd":
        return cls(needed)

    @classmethod
    def filled(cls, processor: str = "") -> "Odd":
        """Is made with a processor."""
        return cls(1, name=f"made with {processor}", processor=processor)

    @classmethod
    def sized(cls, needed: int) -> "Odd":
        """Needs an argument."""
        return cls(needed)

    @classmethod
    def count(cls) -> int:
        """Makes none."""
        return 1

    @classmethod
    def _hidden(cls) -> "Odd":
        return cls(1)

    @staticmethod
    def loner() -> "Odd":
        """Knows no class."""
        return Odd(1)


@dataclass
class Odder(Odd):
    """Has the presets of its parent."""


ODD = {"odd": Odd, "odder": Odder}


WORDS = SimpleNamespace(unk_token_id=3)
"""Stands in for a processor."""


@pytest.fixture(autouse=True)
def odd_ones(monkeypatch):
    for name, kind in ODD.items():
        monkeypatch.setitem(NAMED, name, kind)


def asked(text):
    """The only decoder of a text."""
    [method] = parse_spec(text).methods
    return method


# Text -> spec -> text

NAMES = [*NAMED, *(f"{n}.{p}" for n, kind in NAMED.items() for p in presets(kind))]
ADDED = [name for name in NAMES if issubclass(find(name)[0], RecipeStrategy)]


def other_value(setting):
    """A value of a setting that is not its default, and a text that is hard to write."""
    hard = r"a, b\ + vdd+sample\,c=d"
    if setting.choices:
        return next(value for value in setting.choices if value != setting.value)
    for value in (7, 0.25, not setting.value, hard, (hard, "yes"), (1, 3), (5,), (0.5,)):
        try:
            read = setting.reader.read(written(value))
        except ValueError:
            continue
        if read == value != setting.value and type(read) is type(value):
            return value
    raise AssertionError(setting)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_comes_back_from_its_text(name):
    known = settable(find(name)[0])
    values = {key: other_value(setting) for key, setting in known.items()}
    spec = parse_spec(name, [f"{key}={written(value)}" for key, value in values.items()])
    assert spec.methods[0].settings == values
    assert parse_specs(f"greedy,{spec.label},vcd")[1].methods[0].settings == values
    assert parse_spec(spec.label).label == spec.label
    for key, value in values.items():
        one = parse_spec(name, [f"{key}={written(value)}"])
        further = [one]
        if name in ADDED:
            both = (*one.methods, *parse_spec("vaf:mode=abs").methods)
            further += [replace(one, way="sample"), Spec(both, way="beam")]
        for spec in further:
            again = parse_spec(spec.label)
            assert (again.way, again.label) == (spec.way, spec.label)
            assert [m.settings for m in again.methods] == [m.settings for m in spec.methods]


@pytest.mark.parametrize("name", ADDED)
def test_every_decoder_is_added_to_another_and_drawn(name):
    assert parse_spec(f"{name}+VAF").label == f"{name}+vaf"
    for way in WAYS:
        spec = parse_spec(f"{name}+{way}")
        assert (spec.label, spec.way, spec.name) == (f"{name}+{way}", way, name.split(".")[0])
        assert parse_spec(f"{way}+{name}") == spec
        assert parse_spec(way).is_plain and parse_spec(way).build(None) is None


def test_sums_are_made_of_their_decoders():
    spec = parse_spec("vdd:alpha=0.5,markers=3+4+Vaf:enhance=0.2+sample")
    assert spec.build(WORDS) == VDD(0.5, processor=WORDS, markers=(3, 4)) + VAF(enhance=0.2)
    assert spec.label == "vdd:alpha=0.5,markers=3+4+vaf:enhance=0.2+sample"
    wordings = {"vdd": dict(alpha=2.0), "vaf": dict(enhance=0.9)}
    made = spec.build(WORDS, wordings)
    assert [made.decoders[0].alpha, made.decoders[1].enhance] == [0.5, 0.2]
    assert parse_spec("vdd+vaf").build(None, wordings) == VDD(alpha=2.0) + VAF(enhance=0.9)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (" VDD ", ["vdd"]),
        ("greedy, VDD:alpha=0.5,variant=both,vcd", ["greedy", "vdd:alpha=0.5,variant=both", "vcd"]),
        ("pai:layers=1+3+beam,vaf", ["pai:layers=1+3+beam", "vaf"]),
        ("vdgd:request=a\\, b:c,+sample,vcd", ["vdgd:request=a\\, b:c,+sample", "vcd"]),
        (r"mvp:labels=yes+\vdd", [r"mvp:labels=yes+\vdd"]),
        ("vdgd:request=1+1,tokens=4+vaf", ["vdgd:request=1+1,tokens=4+vaf"]),
    ],
)
def test_commas_separate_and_pluses_join(text, labels):
    assert [spec.label for spec in parse_specs(text)] == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vdd+vaff", "no decoder or way is called 'vaff' (did you mean vaf?)"),
        ("vdd:alpha=1+vaff", "no decoder or way is called 'vaff' (did you mean vaf?)"),
        ("mvp:labels=yes+vdd", r"write ,+vdd for the decoder or way, +\vdd for the word"),
        ("vdgd:request=Say.+sample", r"write ,+sample for the decoder or way, +\sample for the"),
        ("mvp+vaf", "mvp chooses a whole answer and cannot be added to another decoder"),
        ("vdd+posthoc", "posthoc chooses a whole answer and cannot be added"),
        ("posthoc+sample", "posthoc answers with its best label and takes no way to decode"),
        ("vdd+sample+beam", "tokens are taken in one way, got sample and beam"),
        ("greedy+sample", "tokens are taken in one way"),
        ("sample:temperature=1", "sample has no settings, got temperature=1"),
        ("vdd+sid:alpha=2", "vdd+sid:alpha=2: two rules cannot both score"),
        ("vdd+vasparse", "vdd+vasparse: two rules cannot both score"),
        ("vaf+vdd:alpha=-1", "vdd:alpha=-1: alpha must be a finite number >= 0"),
        ("alpha=1,vdd", "the setting 'alpha=1' stands before any decoder"),
        ("vdd,vcd", "names 2 decoders, and one is wanted here: vdd+vaf adds two"),
    ],
)
def test_what_cannot_be_read_or_added_says_what_can(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_spec(text).build(STAND_IN)


def test_further_settings_are_those_of_one_decoder():
    assert parse_spec("vdd:beta=0", ["alpha=2"]).label == "vdd:beta=0,alpha=2"
    assert parse_spec("vdgd", ["request=a, b"]).methods[0].settings == {"request": "a, b"}
    for text, message in [
        ("vdd+vaf", "settings are written behind their names: vdd:alpha=2+vaf"),
        ("greedy", "greedy has no settings, got alpha=2"),
        ("vdd:alpha=1", "alpha of vdd is set twice"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_spec(text, ["alpha=2"])


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
        "either": ("1", "a whole number or text"),
        "pair": ("1+2", "a whole number + a whole number"),
        "loose": ("none", "text or true or false or a number or a whole number or none"),
        "path": ("low", "text or a whole number, or several joined by +"),
        "window": ("0.5+1.0", "a number + a number or a whole number + a whole number"),
        "mixed": ("none", "a whole number + text or none"),
        "several": ("a+b c.", "text, or several joined by +"),
        "weights": ("none", "a number, or several joined by + or none"),
        "silent": ("empty", "text"),
        "mode": ("fast", "one of fast, slow"),
        "many": ("1", "a whole number or one of all, 7"),
        "strength": ("1.0", "a number"),
        "maybe": ("none", "a whole number or none"),
    }


def test_a_range_and_a_closed_set_are_read_off_the_annotation():
    known = settable(Odd)
    assert {s.name: str(s.usual) for s in known.values() if s.usual} == {
        "strength": "0 to 2.5",
        "maybe": "1 to 9",
    }
    assert {s.name: s.choices for s in known.values() if s.choices} == {"mode": ("fast", "slow")}
    assert known["strength"].kind is float and known["strength"].value == 1.0
    assert known["made"].value == (1, 2)
    with pytest.raises(ValueError, match="from low to high, got 2 and 2"):
        SearchRange(2, 2)


CLOSED = {
    ("vdd", "variant"): ("none", "unk", "both"),
    ("damro", "score"): ("auto", "concat", "head_mean", "pooled_query", "received", "norm"),
    ("damro", "layer"): ("features", "last"),
    ("vaf", "mode"): ("scale", "abs"),
    ("dola", "divergence"): ("jsd", "code"),
    ("m3id", "space"): ("log_softmax", "logits"),
    ("vdgd", "truncation"): ("plausibility", "nucleus", "knee"),
    ("vdgd", "reduction"): ("min", "avg", "sum"),
    ("vdgd", "layout"): ("image_first", "official", "continue"),
    ("mvp", "unresolved"): ("skip", "affirmative"),
    ("carve", "steps"): ("full", "start", "end"),
    ("carve", "final"): ("both", "refined"),
    ("carve", "fill"): ("black", "mean", "blur"),
    ("posthoc", "reference"): ("none", "unk", "none_unk"),
    ("posthoc", "aggregate"): ("max", "sum"),
}


def test_closed_sets_are_listed():
    listed = {
        (name, setting.name): setting.choices
        for name, kind in DECODERS.items()
        for setting in settable(kind).values()
        if setting.choices
    }
    assert listed == CLOSED
    hint = get_args(settable(DoLa)["layers"].kind)[0]
    assert get_args(hint) == ("low", "high")


@pytest.mark.parametrize(("place", "names"), CLOSED.items(), ids=".".join)
def test_every_value_of_a_closed_set_is_taken(place, names):
    decoder, setting = place
    for name in names:
        made = asked(f"{decoder}:{setting}={name}").build(WORDS)
        assert getattr(made, setting) == name


NUMBERS = (int, float, int | None, float | None)


@pytest.mark.parametrize("name", DECODERS)
def test_every_number_has_a_range_whose_ends_are_taken(name):
    # An unknown token is an id: there is no range to try.
    numbers = {
        key: setting
        for key, setting in settable(DECODERS[name]).items()
        if setting.kind in NUMBERS and key != "unk_token_id"
    }
    for key, setting in numbers.items():
        assert setting.usual, f"{key} of {name} has no range"
        for end in (setting.usual.low, setting.usual.high):
            asked(f"{name}:{key}={end}").build(WORDS)


@pytest.mark.parametrize("name", DECODERS)
def test_every_default_can_be_written(name):
    kind, decoder = DECODERS[name], asked(name).build(WORDS)
    for setting in settable(kind).values():
        text = "" if setting.default == "empty" else setting.default
        assert setting.reader.read(text) == getattr(decoder, setting.name)


def test_only_what_is_no_text_cannot_be_set():
    hidden = {
        name: {f.name for f in fields(kind) if f.init} - settable(kind).keys() - {"processor"}
        for name, kind in DECODERS.items()
    }
    assert {name: names for name, names in hidden.items() if names} == {"agla": {"matcher"}}


def test_settings_take_the_type_of_their_field():
    text = "odd:needed=-2,flag=off,ids=4+5,share=none,words=a+b,made=,some=1e-3+2,name=none"
    request = asked(text)
    assert request.label == text
    assert request.build("a processor") == Odd(
        -2, False, (4, 5), None, ("a", "b"), (), (1e-3, 2.0), "none", "a processor"
    )
    assert asked("ODD: share = 0.5 ,ids = 7").label == "odd:share=0.5,ids=7"
    assert asked("odd:share=inf").settings == {"share": math.inf}
    assert asked("vdd:alpha=2").build(None) == VDD(alpha=2.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("either=7", 7),
        ("either=7.5", "7.5"),
        ("pair=3+4", (3, 4)),
        ("pair= 3 + 4 ", (3, 4)),
        ("loose=1", 1),
        ("loose=1.0", 1.0),
        ("loose=true", True),
        ("loose=None", None),
        ("loose=nothing", "nothing"),
        ("path=low", "low"),
        ("path=3", (3,)),
        ("path=1+3", (1, 3)),
        ("path=1+x", "1+x"),
        ("window=1+3", (1, 3)),
        ("window=0.5+1", (0.5, 1.0)),
        ("mixed=3+4", (3, "4")),
        ("mixed=none", None),
        ("mode=slow", "slow"),
        ("many=all", "all"),
        ("many=7", "7"),
        ("many=8", 8),
        ("strength=2", 2.0),
        ("maybe=none", None),
        ("maybe=3", 3),
    ],
)
def test_of_several_types_the_narrowest_that_fits_is_taken(text, value):
    [setting] = asked(f"odd:{text}").settings.values()
    assert setting == value and type(setting) is type(value)
    if isinstance(value, tuple):
        assert list(map(type, setting)) == list(map(type, value))


@pytest.mark.parametrize(
    ("text", "decoder"),
    [
        ("pai:layers=1+3", PAI(layers=(1, 3))),
        ("pai:layers=none,markers=3+4", PAI(markers=(3, 4))),
        ("vaf:layers=0+2,mode=abs,heads=5", VAF(layers=(0, 2), mode="abs", heads=(5,))),
        ("vaf:heads=None", VAF()),
        ("deco:layers=1+3", DeCo(layers=(1, 3))),
        ("deco:layers=0.5+0.75", DeCo(layers=(0.5, 0.75))),
        ("dola:layers=high,divergence=code", DoLa("high", "code")),
        ("dola:layers=2", DoLa(layers=(2,))),
        ("dola:layers=0+2", DoLa(layers=(0, 2))),
        ("sid:count=4", SID(count=4)),
        ("damro:k=none,score=norm", DAMRO(score="norm")),
        ("m3id:cap=2,confidence=0.9", M3ID(cap=2.0, confidence=0.9)),
        ("icd:instruction=Be careless.", ICD(processor=WORDS, instruction="Be careless.")),
        ("carve:layers=1+3,suffix=", CARVE(processor=WORDS, layers=(1, 3), suffix="")),
        (
            "vdgd:layout=continue,request=Describe the image.",
            VDGD(processor=WORDS, layout="continue", request="Describe the image."),
        ),
        (
            "mvp:requests=What?+Where is it?,labels=A+B,weights=1+.2,template={caption}{question}",
            MVP(
                processor=WORDS,
                requests=("What?", "Where is it?"),
                weights=(1.0, 0.2),
                labels=("A", "B"),
                template="{caption}{question}",
            ),
        ),
        ("mvp:requests=What?,weights=1", MVP(processor=WORDS, requests=("What?",), weights=(1.0,))),
        ("posthoc:labels=a+b", PostHocDebias(processor=WORDS, labels=("a", "b"))),
    ],
)
def test_the_methods_settings_are_read(text, decoder):
    assert asked(text).build(WORDS) == decoder


def test_presets_are_class_methods_that_make_one():
    assert list(presets(Odd)) == list(presets(Odder)) == ["filled", "optional", "small"]
    assert list(presets(VDD)) == ["paper"] and presets(DoLa) == {}
    small = presets(Odd)["small"]
    assert small.meaning == "A needed 1." and presets(Odd)["optional"].meaning == ""
    assert small.changes() == {"needed": "1", "ids": "4+5", "share": "0.5"}
    assert type(asked("odder.small").build("")) is Odder


@pytest.mark.parametrize(
    ("text", "decoder"),
    [
        ("vcd.pope_paper", VCD.pope_paper()),
        ("vcd.pope_paper:alpha=0.5", VCD(alpha=0.5, noise_step=999)),
        ("vcd.pope_paper:noise_step=7", VCD(noise_step=7)),
        ("vasparse.paper", VASparse.paper()),
        ("pai.without_guidance:alpha=0.4", PAI.without_guidance(0.4)),
        ("sid.sid_2408:count=none,ratio=0.5", SID(beta=0.4, start=2, ratio=0.5)),
        ("damro.first_release", DAMRO(layer="last")),
        ("vasparse.released", VASparse(alpha=1.1, keep=1.0, sum_to_one=False)),
        ("vcd.pope_script", VCD(beta=0.2)),
        ("agla.released", AGLA(processor=WORDS, first_only=True)),
        ("carve.paper_best:layers=1+2", replace(CARVE.paper_best(processor=WORDS), layers=(1, 2))),
    ],
)
def test_settings_override_presets(text, decoder):
    request = asked(text)
    assert request.label == text
    assert request.build(WORDS) == decoder


def test_presets_get_the_processor_and_their_settings_are_checked():
    assert asked("odd.small:needed=3").build("a processor") == Odd(
        3, ids=(4, 5), share=0.5, processor="a processor"
    )
    words = SimpleNamespace(unk_token_id=7)
    assert asked("vdd.paper").build(words) == VDD(variant="both", processor=words)
    with pytest.raises(ValueError, match=r"vdd\.paper: .*pass processor="):
        asked("vdd.paper").build(None)
    filled = asked("odd.filled").build("a processor")
    assert (filled.name, filled.processor) == ("made with a processor", "a processor")
    with pytest.raises(ValueError, match=r"carve\.paper_best: processor must be .*, as processor="):
        asked("carve.paper_best").build(None)
    for kind in DECODERS.values():
        assert all(preset.meaning and preset.changes() for preset in presets(kind).values())


@pytest.mark.parametrize(
    ("texts", "value"),
    [(("true", "Yes", "on", "1"), True), (("false", "No", "off", "0"), False)],
)
def test_words_for_truth(texts, value):
    assert all(asked(f"odd:flag={text}").settings["flag"] is value for text in texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "vddd",
            "no decoder is called 'vddd' (did you mean vdd?): there are greedy",
        ),
        ("", "no decoder is called '': there are greedy"),
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
        (
            "vcd.pope_papers",
            "no preset of vcd is called 'pope_papers' (did you mean pope_paper?): there are pope",
        ),
        ("vcd.", "no preset of vcd is called ''"),
        ("dola.paper", "no preset of dola is called 'paper': there is none"),
        ("odd.sized", "no preset of odd is called 'sized'"),
        (
            "vcdx.pope_paper",
            "no decoder is called 'vcdx.pope_paper': there are greedy",
        ),
        ("vcd.pope_paper:alpha=-1", "vcd.pope_paper:alpha=-1: alpha must be a finite number >= 0"),
        ("vcd.pope_paper:alfa=1", "no setting of vcd.pope_paper is called 'alfa'"),
        (
            "pai:layers=3",
            "layers of pai must be a whole number + a whole number or none, got '3'",
        ),
        ("pai:layers=1+2+3", "layers of pai must be a whole number + a whole number or none"),
        ("pai:layers=(1+3)", "or none, got '(1+3)'"),
        ("pai:layers=3+1", "pai:layers=3+1: layers must be (first, first after)"),
        ("deco:layers=low", "a number + a number or a whole number + a whole number, got 'low'"),
        ("agla:matcher=blip", "no setting of agla is called 'matcher'"),
        ("mvp:weights=1+x", "weights of mvp must be a number, or several joined by +, got '1+x'"),
        ("vdgd", "vdgd: processor must be the model's processor or tokenizer, as processor="),
        (
            "dola:layers=lwo",
            "layers of dola must be one of low, high or a whole number, or several joined by +",
        ),
        ("dola:layers=1+1", 'dola:layers=1+1: layers must be "low", "high" or a tuple'),
        ("odd:mode=Fast", "mode of odd must be one of fast, slow, got 'Fast'"),
        ("odd:many=2.5", "many of odd must be a whole number or one of all, 7, got '2.5'"),
        ("odd", "odd: Odd.__init__() missing 1 required positional argument: 'needed'"),
    ],
)
def test_what_cannot_be_made_says_what_can(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        asked(text).build(None)


def test_an_unknown_name_in_a_list_of_none():
    assert str(unknown("setting of it", "x", [])) == "no setting of it is called 'x': there is none"


def test_docstrings_are_read_to_the_end_of_their_arguments():
    text = "Head.\n\nArgs:\n    one: First,\n        second line.\n    two: Third.\n\nDiffers: no."
    assert read_arguments(text) == {"one": "First, second line.", "two": "Third."}
    assert read_arguments("Head.") == {}


@pytest.mark.parametrize("kind", DECODERS.values())
def test_every_setting_is_documented(kind):
    documented = read_arguments(inspect.getdoc(kind))
    assert all(documented[setting] for setting in settable(kind))


def test_a_decoder_names_its_paper():
    assert paper(PAI) == (
        "Paying More Attention to Image, Liu et al., ECCV 2024 (arXiv:2407.21771)"
    )
