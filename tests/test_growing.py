"""M3ID: numbers of peers.md 6, and the formula in float64 by numpy."""

import math

import numpy as np
import pytest
import torch
from torch import tensor

from sightline import State
from sightline.logits.growing import GrowingGuidance
from sightline.logits.rules import Needs

INF = math.inf
DOUBLE = dict(atol=1e-12, rtol=0)  # float64
WITH = [2.0, 1.5, -0.5]
WITHOUT = [2.5, 0.5, -1.0]


def logits(*rows):
    return tensor(rows, dtype=torch.float64)


def scored(rule, step, *branches):
    return rule([logits(branch) for branch in branches], State(step=step))[0]


def formula(step, rate=0.02, space="log_softmax", expert=WITH, other=WITHOUT):
    """The note's formula as it is printed: no expm1, no torch."""
    expert, other = np.array(expert), np.array(other)
    if space == "log_softmax":
        expert = expert - np.log(np.exp(expert).sum())
        other = other - np.log(np.exp(other).sum())
    fade = np.exp(-rate * step)
    return tensor((expert + (1 - fade) / fade * (expert - other)).tolist(), dtype=torch.float64)


@pytest.mark.parametrize(("step", "g"), [(0, 0), (1, 0.020201), (10, 0.221403), (50, 1.718282)])
def test_strength_of_the_note(step, g):
    assert GrowingGuidance().strength(step) == pytest.approx(g, abs=5e-7)
    assert GrowingGuidance(start=1).strength(step) == GrowingGuidance().strength(step + 1)


@pytest.mark.parametrize("space", ["log_softmax", "logits"])
@pytest.mark.parametrize("step", [0, 1, 10, 50])
def test_the_formula(step, space):
    found = scored(GrowingGuidance(beta=0, space=space), step, WITH, WITHOUT)
    torch.testing.assert_close(found, formula(step, space=space), **DOUBLE)


def test_three_tokens_by_hand():
    """At 50 tokens g = 1.718282: 2 - g/2, 1.5 + g, -0.5 + g/2, and the third is implausible."""
    found = scored(GrowingGuidance(space="logits"), 50, WITH, WITHOUT)
    wanted = tensor([1.140859, 3.218282, -INF], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert scored(GrowingGuidance(), 0, WITH, WITHOUT).argmax() == 0
    assert found.argmax() == 1


def test_the_two_spaces_give_one_distribution():
    one, other = (
        scored(GrowingGuidance(space=space), 20, WITH, WITHOUT).softmax(-1)
        for space in ("log_softmax", "logits")
    )
    torch.testing.assert_close(one, other, **DOUBLE)


def test_the_first_token_is_the_experts_unless_counting_starts_at_1():
    first = scored(GrowingGuidance(beta=0, space="logits"), 0, WITH, WITHOUT)
    assert first.tolist() == WITH
    later = scored(GrowingGuidance(beta=0, start=1), 0, WITH, WITHOUT)
    torch.testing.assert_close(later, formula(1), **DOUBLE)


def test_a_cap_bounds_the_strength():
    rule = GrowingGuidance(cap=0.5)
    assert rule.strength(10) == pytest.approx(0.221403, abs=5e-7)
    assert [rule.strength(step) for step in (21, 50, 10**6)] == [0.5, 0.5, 0.5]
    assert rule.strength(20) == pytest.approx(0.491825, abs=5e-7)


def test_a_very_long_answer_stays_finite():
    rule = GrowingGuidance(beta=0)
    others = [torch.tensor([WITH]), torch.tensor([WITHOUT])]
    for step in (5_000, 10**6):
        scores = rule(others, State(step=step))
        assert scores.isfinite().all()
        assert scores.argmax() == 1


def test_only_rows_that_are_not_sure_are_guided():
    """Best probabilities 0.592201 and 0.982014: the second is left as it is."""
    sure = [4.0, 0.0, -INF]
    rule = GrowingGuidance(beta=0, confidence=0.9, space="logits")
    found = rule([logits(WITH, sure), logits(WITHOUT, WITHOUT)], State(step=10))
    torch.testing.assert_close(found[0], formula(10, space="logits"), **DOUBLE)
    assert found[1].tolist() == sure
    everywhere = GrowingGuidance(beta=0, confidence=0.5922, space="logits")
    assert scored(everywhere, 10, WITH, WITHOUT).tolist() == WITH
    nowhere = GrowingGuidance(beta=0, confidence=0.5923, space="logits")
    torch.testing.assert_close(
        scored(nowhere, 10, WITH, WITHOUT), formula(10, space="logits"), **DOUBLE
    )


def test_several_others_are_averaged():
    found = scored(GrowingGuidance(beta=0), 10, WITH, [3.0, 0.0, -1.0], [2.0, 1.0, -1.0])
    torch.testing.assert_close(found, formula(10), **DOUBLE)


@pytest.mark.parametrize("off", [GrowingGuidance(rate=0), GrowingGuidance(cap=0)])
def test_off_only_the_cut_is_left(off):
    assert not off.needs.others
    assert off.needs.cut
    assert off.needs != Needs()
    assert scored(off, 50, WITH).tolist() == [2.0, 1.5, -INF]


def test_off_without_a_cut_nothing_is_touched():
    off = GrowingGuidance(rate=0, beta=0)
    assert off.needs == Needs()
    expert = logits(WITH)
    assert off([expert]) is expert
    assert GrowingGuidance(beta=0).needs != Needs()
    assert GrowingGuidance().needs.others


def test_it_wants_something_to_compare_with():
    with pytest.raises(ValueError, match="got none"):
        GrowingGuidance()([logits(WITH)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(rate=-0.1), "rate must be a finite number >= 0"),
        (dict(rate=INF), "rate must be a finite number >= 0"),
        (dict(beta=1.1), r"beta must be in \[0, 1\]"),
        (dict(cap=-1), "cap must be a finite number >= 0"),
        (dict(cap=math.nan), "cap must be a finite number >= 0"),
        (dict(space="softmax"), "space must be one of log_softmax, logits"),
        (dict(start=-1), "start must be a whole number from 0 to"),
        (dict(start=0.5), "start must be a whole number"),
        (dict(confidence=1.5), r"confidence must be in \[0, 1\]"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        GrowingGuidance(**wrong)
