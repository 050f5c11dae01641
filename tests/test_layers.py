"""Worked numbers of peers.md 4 (DoLa) and 5 (DeCo), and which layers the rules ask for."""

import math

import pytest
import torch
from torch import tensor

from sightline import State
from sightline.logits.layers import LayerContrast, LayerCorrection
from sightline.logits.rules import Needs

INF = math.inf
DOUBLE = dict(atol=1.5e-6, rtol=0)  # six digits, float64
SINGLE = dict(atol=1e-5, rtol=0)  # the same in float32, what the engine hands a rule
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)]
)

LAST = [3, 2.5, 0, -2]
EARLY = {0: [0.5, 0.5, 0.2, 0], 2: [1, 2.5, 0.3, -0.5], 4: [2.5, 2.4, 0.2, -1.5]}
DECO_LAST = [2.0, 1.9, 0.5, -1.0, -3.0]
DECO_EARLY = {20: [0.5, 2.0, 0, 0.2, -1.0], 21: [1.0, 3.0, 0.5, 0, -2.0]}


def logits(*rows, dtype=torch.float64):
    return tensor(rows, dtype=dtype)


def state(*layers, dtype=torch.float64):
    return State(early=tuple(logits(layer, dtype=dtype) for layer in layers))


@PRECISIONS
@pytest.mark.parametrize(
    ("divergence", "table"),
    [
        ("code", [0.049251, 0.031228, 0.001625]),
        ("jsd", [0.123221, 0.110847, 0.006431]),
    ],
)
def test_divergence_tables(divergence, table, dtype, tolerance):
    early = torch.stack([logits(layer, dtype=dtype) for layer in EARLY.values()])
    found = LayerContrast(divergence=divergence).divergences(logits(LAST, dtype=dtype), early)
    torch.testing.assert_close(found[:, 0], tensor(table, dtype=dtype), **tolerance)


@PRECISIONS
@pytest.mark.parametrize("divergence", ["code", "jsd"])
@pytest.mark.parametrize(
    ("layers", "scores", "probabilities"),
    [
        ((0, 2, 4), [0.699512, 0.199512, -INF, -INF], [0.622459, 0.377541, 0, 0]),
        ((2,), [1.316119, -0.683881, -INF, -INF], [0.880797, 0.119203, 0, 0]),
    ],
)
def test_dola_worked_example(divergence, layers, scores, probabilities, dtype, tolerance):
    rule = LayerContrast(layers, divergence)
    early = [EARLY[layer] for layer in rule.needs.early(6, tied=False)]
    found = rule([logits(LAST, dtype=dtype)], state(*early, dtype=dtype))[0]
    torch.testing.assert_close(found, tensor(scores, dtype=dtype), **tolerance)
    torch.testing.assert_close(found.softmax(-1), tensor(probabilities, dtype=dtype), **tolerance)


def test_dola_in_its_parts():
    last, first = (logits(row)[0].log_softmax(-1) for row in (LAST, EARLY[0]))
    expected = tensor([-0.508657, -1.008657, -3.508657, -5.508657], dtype=torch.float64)
    torch.testing.assert_close(last, expected, **DOUBLE)
    expected = tensor([-1.208169, -1.208169, -1.508169, -1.708169], dtype=torch.float64)
    torch.testing.assert_close(first, expected, **DOUBLE)
    uncut = LayerContrast((0,)).combine([logits(LAST)], state(EARLY[0]))[0]
    torch.testing.assert_close(uncut, last - first, **DOUBLE)


def test_the_two_divergences_can_choose_differently():
    """The illustration of the note; its distributions are printed to three digits."""
    last = logits([0.012, 0.003, 0.92, 0.011, 0.055]).log()
    first = logits([0.014, 0.566, 0.335, 0.085, 1e-4]).log()
    second = logits([0.022, 0.077, 0.146, 0.006, 0.750]).log()
    early = torch.stack([first, second])
    code = LayerContrast(divergence="code").divergences(last, early)[:, 0]
    jsd = LayerContrast(divergence="jsd").divergences(last, early)[:, 0]
    assert code[0] > code[1]
    assert jsd[0] < jsd[1]
    near = dict(atol=2e-3, rtol=0)
    torch.testing.assert_close(code, tensor([0.1431, 0.1033], dtype=torch.float64), **near)
    torch.testing.assert_close(jsd, tensor([0.2943, 0.3581], dtype=torch.float64), **near)


def test_dola_keeps_the_best_token_always():
    kept = LayerContrast((0,), beta=1)([logits(LAST)], state(EARLY[4]))[0].isfinite()
    assert kept.tolist() == [True, False, False, False]


def test_dola_chooses_for_each_row():
    """Row 0 takes layer 0; row 1, with layers 0 and 4 swapped, takes the other."""
    swapped = [EARLY[4], EARLY[2], EARLY[0]]
    both = State(
        early=tuple(logits(a, b) for a, b in zip(EARLY.values(), swapped, strict=True)),
    )
    rule = LayerContrast((0, 2, 4))
    found = rule([logits(LAST, LAST)], both)
    assert rule.divergences(logits(LAST, LAST), torch.stack(both.early)).argmax(0).tolist() == [
        0,
        2,
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[:1], rule([logits(LAST)], state(*EARLY.values())))


def test_a_banned_token_of_the_model_leaves_the_divergence_a_number():
    """Some models give tokens -inf in their own forward."""
    last = logits([3, 2.5, -INF, -2])
    found = LayerContrast((0, 2, 4))([last], state(*EARLY.values()))
    assert not found.isnan().any()
    assert found[0].isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("layers", "blocks", "tied", "expected"),
    [
        ("low", 32, False, range(0, 16, 2)),
        ("low", 32, True, range(2, 16, 2)),
        ("high", 32, False, range(16, 32, 2)),
        ("high", 32, True, range(16, 32, 2)),
        ("low", 40, False, range(0, 20, 2)),
        ("high", 40, False, range(20, 40, 2)),
        ("low", 48, False, range(0, 20, 2)),
        ("low", 48, True, range(2, 20, 2)),
        ("high", 48, False, range(28, 48, 2)),
        ("low", 3, False, [0]),
        ("high", 3, False, [1]),
        ("high", 3, True, [1]),
        ((1, 0), 3, True, [1, 0]),
    ],
)
def test_dola_candidates(layers, blocks, tied, expected):
    assert LayerContrast(layers).needs.early(blocks, tied) == tuple(expected)


def test_dola_says_where_no_candidate_is_left():
    with pytest.raises(ValueError, match="leaves no layer of a model of 3 blocks with tied"):
        LayerContrast("low").needs.early(3, tied=True)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (32, range(20, 29)),
        (40, range(25, 36)),
        (48, range(30, 43)),
        (28, range(18, 25)),
        (80, range(50, 71)),
        (3, [2]),
    ],
)
def test_deco_window(blocks, expected):
    for tied in (False, True):
        assert LayerCorrection().needs.early(blocks, tied) == tuple(expected)


def test_deco_window_by_number_or_share():
    assert LayerCorrection(layers=(20, 28)).needs.early(32, False) == tuple(range(20, 29))
    assert LayerCorrection(layers=(2, 2)).needs.early(3, False) == (2,)
    assert LayerCorrection(layers=(0.62, 0.88)).needs.early(32, False) == tuple(range(20, 29))
    assert LayerCorrection(layers=(0.55, 0.55)).needs.early(100, False) == (55,)
    whole = LayerCorrection(layers=(0.0, 1.0))
    assert whole.needs.early(3, False) == (0, 1, 2)
    with pytest.raises(ValueError, match="holds no layer of a model of 2 blocks"):
        LayerCorrection().needs.early(2, False)


@pytest.mark.parametrize("rule", [LayerContrast((0, 3)), LayerCorrection(layers=(2, 3))])
def test_layers_that_the_model_has_not(rule):
    with pytest.raises(ValueError, match=r"must be in 0 to 2 for a model of 3 blocks.*got \[3\]"):
        rule.needs.early(3, tied=False)
    assert rule.needs.early(4, tied=False)[-1] == 3


@PRECISIONS
def test_deco_worked_example(dtype, tolerance):
    rule = LayerCorrection(0.6, layers=(20, 21), top_k=4, top_p=0.9)
    early = state(*DECO_EARLY.values(), dtype=dtype)
    last = logits(DECO_LAST, dtype=dtype)
    found = rule([last], early)[0]
    wanted = tensor([2.470978, 3.312934, 0.735489, -INF, -INF], dtype=dtype)
    torch.testing.assert_close(found, wanted, **tolerance)
    wanted = tensor([0.285942, 0.663643, 0.050416, 0, 0], dtype=dtype)
    torch.testing.assert_close(found.softmax(-1), wanted, **tolerance)
    assert last.argmax() == 0
    assert found.argmax() == 1
    uncut = rule.combine([last], early)[0]
    wanted = last[0] + 0.6 * 0.784963 * early.early[1][0]
    torch.testing.assert_close(uncut, wanted, **tolerance)


def test_deco_in_its_parts():
    def close(actual, expected):
        torch.testing.assert_close(actual, tensor(expected, dtype=torch.float64), **DOUBLE)

    last = logits(DECO_LAST)
    close(last.softmax(-1)[0], [0.457772, 0.414209, 0.102143, 0.022791, 0.003084])
    close(last.softmax(-1).cumsum(-1)[0, :3], [0.457772, 0.871982, 0.974124])
    first, second = (logits(layer).softmax(-1)[0, :3] for layer in DECO_EARLY.values())
    close(first, [0.141800, 0.635505, 0.086006])
    close(second, [0.106233, 0.784963, 0.064434])


@pytest.mark.parametrize(
    ("top_k", "top_p", "candidates"),
    [
        (4, 0.9, [0, 1, 2]),
        (2, 0.9, [0, 1]),
        (4, 0.458, [0, 1]),
        (4, 0.457, [0]),
        (4, 1e-9, [0]),
        (1, 0.9, [0]),
        (0, 0.9, [0, 1, 2]),
        (4, 1.0, [0, 1, 2, 3]),
        (0, 1.0, [0, 1, 2, 3, 4]),
        (20, 1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_deco_candidates(top_k, top_p, candidates):
    """Of logits or log-probabilities, whatever the order of the vocabulary."""
    rule = LayerCorrection(top_k=top_k, top_p=top_p)
    shuffle = [3, 1, 4, 0, 2]
    for last in (logits(DECO_LAST), logits(DECO_LAST).log_softmax(-1)):
        assert rule.keep(last)[0].nonzero().flatten().tolist() == candidates
        kept = rule.keep(last[:, shuffle])[0].nonzero().flatten().tolist()
        assert sorted(shuffle[place] for place in kept) == candidates


def test_deco_looks_for_the_surest_layer_among_candidates_alone():
    """The first layer is surer, but of a token that is no candidate."""
    sure_of_another = [0.0, 0.0, 0.0, 0.0, 9.0]
    rule = LayerCorrection(0.6, top_k=4)
    one = rule([logits(DECO_LAST)], state(sure_of_another, DECO_EARLY[21]))
    other = rule([logits(DECO_LAST)], state(DECO_EARLY[21]))
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ([30.0, 0.0, 0.0, 0.0, 0.0], [0.0, 60.0, 0.0, 0.0, 0.0]),
        ([120.0, 30.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0, 0.0]),
    ],
    ids=["of another token", "by more in all"],
)
def test_deco_compares_layers_whose_probabilities_round_alike(less, more, dtype):
    """All are 1 in float32: 1 - e^-30 and more."""
    rule = LayerCorrection(0.6, top_k=4)
    last = logits(DECO_LAST, dtype=dtype)
    confidence = float(tensor(more, dtype=torch.float64).softmax(-1)[:3].max())
    expected = last[0] + 0.6 * confidence * tensor(more, dtype=dtype)
    for layers in ((less, more), (more, less)):
        found = rule([last], state(*layers, dtype=dtype))[0]
        torch.testing.assert_close(found[:3], expected[:3], atol=1e-5, rtol=1e-6)


def test_deco_chooses_for_each_row():
    rule = LayerCorrection(0.6, top_k=4)
    a, b = DECO_EARLY.values()
    both = rule([logits(DECO_LAST, DECO_LAST)], State(early=(logits(a, b), logits(b, a))))
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[:1], rule([logits(DECO_LAST)], state(a, b)))


def test_deco_ranks_alike_when_an_early_layer_is_shifted():
    rule = LayerCorrection(0.6, top_k=4)
    shifted = [value + 5 for value in DECO_EARLY[21]]
    found = rule([logits(DECO_LAST)], state(shifted)).softmax(-1)
    torch.testing.assert_close(found, rule([logits(DECO_LAST)], state(DECO_EARLY[21])).softmax(-1))


def test_deco_off():
    off = LayerCorrection(alpha=0, top_k=0, top_p=1)
    assert off.needs == Needs()
    assert off.needs.early is None
    last = logits(DECO_LAST)
    assert off([last]) is last
    cut_only = LayerCorrection(alpha=0, top_k=2, top_p=1)
    assert cut_only.needs != Needs()
    assert cut_only.needs.early is None
    assert cut_only([last])[0].tolist() == [2.0, 1.9, -INF, -INF, -INF]
    assert LayerCorrection(top_k=0, top_p=1).needs != Needs()


def test_neither_rule_needs_another_branch():
    assert not LayerContrast().needs.others
    assert LayerContrast(beta=0).needs != Needs()
    assert not LayerCorrection().needs.others
    assert not LayerContrast().needs.normed
    assert LayerCorrection().needs.normed


@pytest.mark.parametrize("rule", [LayerContrast(), LayerCorrection()])
def test_a_rule_of_layers_wants_layers(rule):
    with pytest.raises(ValueError, match=r"state\.early holds none"):
        rule([logits(LAST)])


@pytest.mark.parametrize("layers", ["middle", (), (1, 1), (-1,), (1.0,), (True,), [0, 0], 4])
def test_dola_layers_are_checked(layers):
    with pytest.raises(ValueError, match='layers must be "low", "high" or a tuple'):
        LayerContrast(layers)


@pytest.mark.parametrize(
    "layers", [(20,), (28, 20), (0.9, 0.6), (-0.1, 0.5), (0.5, 1.1), (1, 0.5), (-1, 3), 20, "low"]
)
def test_deco_layers_are_checked(layers):
    with pytest.raises(ValueError, match="layers must be two shares of the depth"):
        LayerCorrection(layers=layers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(alpha=-0.1), "alpha must be a finite number >= 0"),
        (dict(top_k=-1), "top_k must be a whole number from 0 to"),
        (dict(top_k=2.5), "top_k must be a whole number"),
        (dict(top_p=0), r"top_p must be in \(0, 1\]"),
        (dict(top_p=1.1), r"top_p must be in \(0, 1\]"),
        (dict(top_p=math.nan), r"top_p must be in \(0, 1\]"),
    ],
)
def test_deco_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        LayerCorrection(**wrong)


def test_dola_settings_are_checked():
    with pytest.raises(ValueError, match="divergence must be one of jsd, code"):
        LayerContrast(divergence="kl")
    with pytest.raises(ValueError, match="beta must be in"):
        LayerContrast(beta=2)
