"""The controls that a page shows for a decoder, and what they are written as."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from sightline import VCD
from sightline.decoders import DECODERS
from sightline.demo.controls import (
    PLAIN,
    choices_of_decoders,
    controls,
    controls_of,
    spec_of_controls,
    step,
)
from sightline.engine.search_range import SearchRange
from sightline.setting_text import STAND_IN, presets, settable
from sightline.specs import find, parse_spec

NAMES = [name for name, _ in choices_of_decoders()]
DECODER_NAMES = [name for name in NAMES if name not in PLAIN]
KINDS = [*DECODERS.values()]


def settings_text(name, values):
    return [
        f"{key}={text}" for key, text in spec_of_controls(name, values).named_settings[1].items()
    ]


@dataclass
class Every:
    """A setting for each form.

    Args:
        share_kept: Of all.
        count: How many.
    """

    share_kept: Annotated[float, SearchRange(0, 3)] = 1.0
    count: Annotated[int, SearchRange(1, 9)] = 3
    seed: int = 0
    flag: bool = True
    mode: Literal["fast", "slow"] = "slow"
    cap: Annotated[float | None, SearchRange(0, 5)] = None
    ids: tuple[int, ...] = ()
    words: str = "a b"


def by_name(kind):
    return {control.name: control for control in controls(kind)}


def test_a_form_follows_from_the_type():
    assert {name: control.form for name, control in by_name(Every).items()} == {
        "share_kept": "slider",
        "count": "slider",
        "seed": "text",
        "flag": "checkbox",
        "mode": "choice",
        "cap": "text",
        "ids": "text",
        "words": "text",
    }


def test_a_slider_runs_through_the_usual_range():
    share, count = by_name(Every)["share_kept"], by_name(Every)["count"]
    assert (share.low, share.high, share.step, share.value) == (0, 3, 0.05, 1.0)
    assert (count.low, count.high, count.step, count.value) == (1, 9, 1, 3)
    assert (share.label, share.meaning, count.meaning) == ("Share kept", "Of all.", "How many.")
    assert by_name(Every)["flag"].low is by_name(Every)["cap"].step is None


def test_a_text_says_what_it_wants():
    cap, ids = by_name(Every)["cap"], by_name(Every)["ids"]
    assert cap.wanted == "a number or none, usually 0 to 5" and cap.default == "none"
    assert ids.wanted == "a whole number, or several joined by +" and ids.default == ""
    assert by_name(Every)["mode"].choices == ("fast", "slow") and ids.choices == ()
    shown = {name: control.shown(control.value) for name, control in by_name(Every).items()}
    assert shown == {
        "share_kept": 1.0,
        "count": 3,
        "seed": "0",
        "flag": True,
        "mode": "slow",
        "cap": "none",
        "ids": "",
        "words": "a b",
    }


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, 0.01),
        (0.01, 1, 0.01),
        (0.05, 1, 0.01),
        (0, 0.5, 0.005),
        (0, 3, 0.05),
        (0, 4, 0.05),
        (0, 2, 0.01),
        (0, 0.1, 0.001),
        (1e-8, 1e-3, 1e-5),
        (0, 700, 5),
        (0, 800, 10),
    ],
)
def test_a_step_is_a_round_hundredth(low, high, expected):
    assert step(SearchRange(low, high)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_read_as_it_is(kind):
    known = settable(kind)
    assert [control.name for control in controls(kind)] == list(known)
    for control in controls(kind):
        value = known[control.name].reader.read(control.default)
        assert value == control.value and type(value) is type(control.value)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_and_presets_lie_in_range_and_on_a_step(kind):
    for preset in (None, *presets(kind).values()):
        for control in controls(kind, preset):
            if control.form == "slider":
                assert control.low <= control.value <= control.high
                steps = (control.value - control.low) / control.step
                assert math.isclose(steps, round(steps), abs_tol=1e-6)
            if control.form == "choice":
                assert control.value in control.choices


@pytest.mark.parametrize("name", DECODERS)
def test_every_control_of_a_decoder_has_a_meaning(name):
    assert all(control.meaning for control in controls_of(name))


def test_names_to_choose_from():
    meanings = dict(choices_of_decoders())
    assert NAMES[:4] == ["greedy", "sample", "vcd", "vcd.pope_paper"]
    assert {name for name in NAMES if "." not in name} == {*PLAIN, *DECODERS}
    assert meanings["vcd"] == (
        "Take off what the model would say of the same image under heavy noise."
    )
    assert meanings["pai.without_guidance"] == "The attention part alone: one branch."
    assert all(meanings.values())
    assert [parse_spec(name).label for name in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_alone_is_not_written(name):
    shown = {control.name: control.shown(control.value) for control in controls_of(name)}
    assert spec_of_controls(name, shown) == parse_spec(name)


@pytest.mark.parametrize("name", DECODER_NAMES)
def test_what_is_changed_is_written_and_shown_again(name):
    changed = {}
    for control in controls_of(name):
        if control.form == "slider":
            changed[control.name] = control.high if control.value < control.high else control.low
        if control.form == "choice":
            changed[control.name] = next(c for c in control.choices if c != control.value)
        if control.form == "checkbox":
            changed[control.name] = not control.value
    assignments = settings_text(name, changed)
    assert [text.partition("=")[0] for text in assignments] == list(changed)
    [method] = parse_spec(name, assignments).methods
    settings = method.settings
    assert settings == changed
    known = settable(find(name)[0])
    assert all(type(settings[key]) is known[key].kind or known[key].choices for key in changed)


def test_values_of_a_preset_are_where_its_controls_begin():
    [alpha, _, noise, _] = controls_of("vcd.pope_paper")
    assert (alpha.value, noise.value, noise.default) == (1.0, 999, "999")
    assert settings_text("vcd.pope_paper", {"noise_step": 999}) == []
    assert settings_text("vcd.pope_paper", {"noise_step": 500}) == ["noise_step=500"]
    assert settings_text("vcd", {"noise_step": 999}) == ["noise_step=999"]
    written = settings_text("vcd.pope_paper", {"alpha": 0.5, "beta": 0.1, "noise_step": 999})
    assert parse_spec("vcd.pope_paper", written).build(STAND_IN) == VCD(0.5, 0.1, 999)


def test_pages_give_numbers_of_either_type():
    assert settings_text("vcd", {"alpha": 1, "noise_step": 500.0}) == []
    assert settings_text("vcd", {"alpha": 2, "noise_step": 7.0}) == ["alpha=2", "noise_step=7"]
    assert settings_text("vcd", {"alpha": 0.30000000000000004}) == ["alpha=0.30000000000000004"]
    assert settings_text("sid", {"count": " 5 ", "ratio": 0.1}) == ["count=5"]
    assert settings_text("agla", {"normalize": True}) == ["normalize=true"]


def test_commas_in_a_text_stay_in_it():
    said = settings_text("vdgd", {"request": "What is here, and where?"})
    assert parse_spec("vdgd", said).methods[0].settings == {"request": "What is here, and where?"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vcd", {"alfa": 1}, r"no setting of vcd is called 'alfa' \(did you mean alpha\?\)"),
        ("greedy", {"alpha": 1}, "greedy has no settings, got alpha=1"),
        ("vcdx", {}, r"no decoder is called 'vcdx' \(did you mean vcd\?\): there are greedy"),
        ("vcd.pope", {}, "no preset of vcd is called 'pope': there are pope_paper"),
        ("vcd", {"alpha": None}, "alpha of vcd must be a number, got 'none'"),
        ("vcd", {"seed": 1.5}, "seed of vcd must be a whole number, got '1.5'"),
        ("sid", {"count": "few"}, "count of sid must be a whole number or none, got 'few'"),
        ("vdd", {"variant": "all"}, "variant of vdd must be one of none, unk, both, got 'all'"),
    ],
)
def test_what_is_no_value_is_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        settings_text(name, values)
