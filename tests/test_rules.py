"""Worked numbers of the methods' notes, float64 where the note gives six digits."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from sightline import Additive, Contrastive, Guidance, Plausibility, Rule, State
from sightline.logits.rules import Needs, plausible

INF = math.inf
SIX_DIGITS = dict(atol=1.5e-6, rtol=0)  # float64

# VCD, section 5
CLEAN = tensor([[2.0, 1.5, 0.5, 0.0, -0.4, -3.0]], dtype=torch.float64)
NOISY = tensor([[1.0, 2.2, -1.0, -0.6, 0.0, -12.0]], dtype=torch.float64)
# VDD, section 5.1
WITH = tensor([[2.0, 1.0, 0.5, -1.0, 0.0, 1.8]], dtype=torch.float64)
NONE = tensor([[2.5, 0.2, 0.5, -1.0, 1.0, 0.3]], dtype=torch.float64)
UNK = tensor([[2.2, 0.4, 0.1, -0.5, 0.6, 0.9]], dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, tensor(expected, dtype=torch.float64), **SIX_DIGITS)


@pytest.mark.parametrize(
    ("beta", "kept"),
    [
        (0.1, [1, 1, 1, 1, 0, 0]),
        (0.2, [1, 1, 1, 0, 0, 0]),
        (0.4, [1, 1, 0, 0, 0, 0]),
        (1.0, [1, 0, 0, 0, 0, 0]),
        (0, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_plausible_tokens(beta, kept):
    assert plausible(CLEAN, beta)[0].tolist() == [bool(k) for k in kept]


def test_a_token_at_the_cutoff_stays():
    assert plausible(tensor([[0.0, math.log(0.5)]], dtype=torch.float64), 0.5).all()


def test_cut_does_not_change_with_temperature():
    """The trap of the note: cut after temperature 0.7 keeps one token less."""
    assert plausible(CLEAN / 0.7, 0.1)[0].tolist() == [True, True, True, False, False, False]
    scores = Contrastive(1.0, 0.1)([CLEAN, NOISY])
    warped = TemperatureLogitsWarper(0.7)(None, scores)
    close(warped[0], [4.285714, 1.142857, 2.857143, 0.857143, -INF, -INF])
    close(warped.softmax(-1)[0], [0.760315, 0.032815, 0.182210, 0.024659, 0, 0])
    close(TopPLogitsWarper(0.9)(None, warped).softmax(-1)[0], [0.806679, 0, 0.193321, 0, 0, 0])


@pytest.mark.parametrize(
    ("alpha", "probabilities"),
    [
        (1.0, [0.637186, 0.070602, 0.234408, 0.057804, 0, 0]),
        (0.5, [0.603665, 0.156494, 0.172953, 0.066888, 0, 0]),
    ],
)
def test_vcd_worked_example(alpha, probabilities):
    close(Contrastive(alpha, 0.1)([CLEAN, NOISY]).softmax(-1)[0], probabilities)


def test_without_the_cut_an_implausible_token_wins():
    scores = Contrastive(1.0, 0)([CLEAN, NOISY])
    close(scores[0], [3.0, 0.8, 2.0, 0.6, -0.8, 6.0])
    assert scores.argmax() == 5
    assert Contrastive(1.0, 0.1)([CLEAN, NOISY]).argmax() == 0


@pytest.mark.parametrize(
    ("others", "alpha", "beta", "scores", "probabilities"),
    [
        (
            [NONE],
            1.0,
            0.2,
            [1.5, 1.8, 0.5, -INF, -INF, 3.3],
            [0.114059, 0.153964, 0.041960, 0, 0, 0.690017],
        ),
        (
            [NONE],
            1.0,
            0.1,
            [1.5, 1.8, 0.5, -INF, -1.0, 3.3],
            [0.113001, 0.152536, 0.041571, 0, 0.009276, 0.683617],
        ),
        (
            [UNK],
            1.0,
            0.1,
            [1.8, 1.6, 0.9, -INF, -0.6, 2.7],
            [0.209397, 0.171440, 0.085134, 0, 0.018996, 0.515033],
        ),
        (
            [NONE, UNK],
            1.0,
            0.1,
            [1.65, 1.7, 0.7, -INF, -0.8, 3.0],
            [0.156697, 0.164731, 0.060601, 0, 0.013522, 0.604448],
        ),
        (
            [NONE, UNK],
            0.5,
            0.1,
            [1.825, 1.35, 0.6, -INF, -0.4, 2.4],
            [0.263100, 0.163618, 0.077288, 0, 0.028433, 0.467562],
        ),
    ],
)
def test_vdd_worked_examples(others, alpha, beta, scores, probabilities):
    result = Contrastive(alpha, beta)([WITH, *others])
    close(result[0], scores)
    close(result.softmax(-1)[0], probabilities)
    assert result.argmax() == 5
    assert WITH.argmax() == 0


def test_equal_branches_leave_the_expert():
    scores = Contrastive(3.0, 0.1)([WITH, WITH])
    kept = scores.isfinite()
    torch.testing.assert_close(scores[kept], WITH[kept], atol=1e-12, rtol=0)  # float64


def test_large_alpha_ranks_by_the_difference():
    """The ranking identity: 2.4 of the note."""
    ranked = Contrastive(999, 0)([WITH, NONE])[0].topk(3).indices.tolist()
    assert ranked == [5, 1, 2]
    close((WITH - NONE)[0], [-0.5, 0.8, 0, 0, -1.0, 1.5])


def test_guidance_worked_example():
    with_image = tensor([[2, 1.5, 0, -3]], dtype=torch.float64)
    without = tensor([[2.5, 0.5, 0, 1]], dtype=torch.float64)
    close(Guidance(1.1)([with_image, without])[0], [-0.578197, -0.928197, -2.528197, -INF])
    strong = Guidance(2.0)([with_image, without])
    close(strong[0], [-0.752610, 0.247390, -2.252610, -INF])
    assert strong.argmax() == 1
    close(Guidance(1.0)([with_image])[0], [-0.558818, -1.058818, -2.558818, -5.558818])


def test_additive_adds_the_views_over_the_experts_plausible_tokens():
    scores = Additive(2.0, 0.2)([CLEAN, NOISY])
    close(scores[0], [4.0, 5.9, -1.5, -INF, -INF, -INF])


def test_views_of_the_first_token_alone():
    """AGLA's note, 5.3: the sum at the first step, thrice the expert at the second."""
    expert = tensor([[1.2, 1.0, -0.3, 0.4, -2.0]], dtype=torch.float64)
    view = tensor([[0.2, 1.9, -0.1, 0.3, 0.0]], dtype=torch.float64)
    rule = Additive(2.0, 0.5, first_only=True)
    close(rule([expert, view], State(step=0))[0], [1.6, 4.8, -INF, -INF, -INF])
    later = rule([expert, view], State(step=1))
    close(later[0], [3.6, 3.0, -INF, -INF, -INF])
    close(later.softmax(-1)[0], [0.645656, 0.354344, 0, 0, 0])


def test_plausibility_is_what_is_left_of_a_contrast_at_alpha_0():
    assert torch.equal(Plausibility(0.1)([CLEAN]), Contrastive(0.0, 0.1)([CLEAN, NOISY]))
    assert not Contrastive(0.0, 0.1).needs.others
    assert Contrastive(0.0, 0.0).needs == Needs()
    assert Contrastive(0.0, 0.1).needs != Needs()


@pytest.mark.parametrize("rule", [Contrastive, Additive])
@pytest.mark.parametrize("alpha", [-0.1, math.nan, INF])
def test_alpha_is_checked(rule, alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        rule(alpha, 0.1)


@pytest.mark.parametrize("rule", [Contrastive, Additive, lambda a, b: Plausibility(b), Guidance])
@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_is_checked(rule, beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        rule(2.0, beta)


def test_a_rule_that_compares_wants_something_to_compare_with():
    with pytest.raises(ValueError, match="got none"):
        Contrastive(1.0, 0.1)([CLEAN])


def test_a_users_rule_needs_only_combine():
    @dataclass(frozen=True)
    class Growing(Rule):
        beta: float = 0.2

        def combine(self, logits, state):
            return logits[0] * (1 + state.step)

    close(Growing()([CLEAN], State(step=1))[0], [4.0, 3.0, 1.0, -INF, -INF, -INF])


def test_repetition_penalty_acts_on_the_combined_score():
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = Contrastive(1.0, 0.1)([CLEAN, NOISY])
    penalised = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2)])(tensor([[0]]), scores)
    close(penalised[0], [2.5, 0.8, 2.0, 0.6, -INF, -INF])
    close(penalised.softmax(-1)[0], [0.515788, 0.094226, 0.312841, 0.077146, 0, 0])
