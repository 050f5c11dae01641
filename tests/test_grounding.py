"""Worked numbers of vdgd.md 5, and what a description pass counts."""

import math

import pytest
import torch
from models import IMAGE
from torch import tensor
from transformers import TopPLogitsWarper

from sightline import State
from sightline.logits.grounding import Grounded, Support
from sightline.logits.rules import Needs

INF = math.inf
SIX_DIGITS = dict(atol=2e-6, rtol=0)  # float32
EOS = 0
DESCRIPTION = [[0, 2, 1, 0.5, -1, 0], [0, 0, 0.5, 3, 1, -2], [1, -1, 0, 0, 2, 1.5]]
LAST = [5.0, 0, 0, 0, 0, 0]  # what gave the end of sequence
TOKENS = [1, 3, 4]
K = {
    "min": [1.830675, 0.647871, 1.647871, 0.280455, 0.830675, 1.330675],
    "avg": [2.586334, 2.586334, 2.419667, 1.753001, 2.253001, 3.086334],
    "sum": [7.759002, 7.759002, 7.259002, 5.259002, 6.759002, 9.259002],
}
STEP_1 = tensor([[1, 2.6, 2.5, 2.4, 0.1, -3]])
STEP_2 = tensor([[3, 0, 0.5, 0.2, 2.9, 2.8]])


def listen(rows, tokens, reduction="min", eos=(EOS,), dtype=torch.float32, drawn=None):
    """g of a pass that gave logits `[L, B, V]` and was answered with tokens `[B, L]`.

    `drawn`: how many of the tokens the loop returned.
    """
    support = Support(reduction, eos)
    rows, tokens = tensor(rows, dtype=dtype), tensor(tokens)
    sequences = torch.cat([torch.full((len(tokens), 2), 5), tokens], dim=1)
    for step, scores in enumerate(rows):
        assert support(sequences[:, : 2 + step], scores) is scores
    return support.finish(sequences if drawn is None else sequences[:, : 2 + drawn])


def described(reduction="min"):
    """g of the note's description, ended by the end of sequence."""
    return listen([[row] for row in [*DESCRIPTION, LAST]], [[*TOKENS, EOS]], reduction)


def close(actual, expected, tolerance=SIX_DIGITS):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, tensor(expected), **tolerance)


def scored(rule, logits, g):
    return rule([logits], State(notes={"support": g}))


def candidates(rule, logits):
    return rule.keep(logits)[0].nonzero().flatten().tolist()


@pytest.mark.parametrize("reduction", K)
def test_divergences_of_the_worked_example(reduction):
    close(-described(reduction)[0], K[reduction])


@pytest.mark.parametrize(
    ("reduction", "probabilities"),
    [
        ("min", [0.098265, 0.320688, 0.117975, 0.463073, 0, 0]),
        ("avg", [0.182404, 0.182404, 0.215485, 0.419707, 0, 0]),
        ("sum", [0.063166, 0.063166, 0.104144, 0.769524, 0, 0]),
    ],
)
def test_first_step_of_the_worked_example(reduction, probabilities):
    rule = Grounded()
    assert candidates(rule, STEP_1) == [0, 1, 2, 3]
    scores = scored(rule, STEP_1, described(reduction))
    close(scores.softmax(-1)[0], probabilities)
    assert scores.argmax() == 3
    assert STEP_1.argmax() == 1


def test_second_step_of_the_worked_example():
    scores = scored(Grounded(), STEP_2, described())
    assert candidates(Grounded(), STEP_2) == [0, 4, 5]
    close(scores.softmax(-1)[0], [0.186324, 0, 0, 0, 0.506480, 0.307196])
    assert scores.argmax() == 4


def test_the_distribution_of_the_end_of_sequence_would_end_the_answer():
    rows = [[row] for row in [*DESCRIPTION, LAST]]
    included = listen(rows, [[*TOKENS, EOS]], eos=())
    close(-included[0, :1], [0.033135])
    scores = scored(Grounded(), STEP_1, included)
    close(scores.softmax(-1)[0], [0.396728, 0.214544, 0.078926, 0.309801, 0, 0])
    assert scores.argmax() == EOS
    assert scored(Grounded(), STEP_1, listen(rows, [[*TOKENS, EOS]])).argmax() == 3


def test_a_description_cut_off_by_its_length_counts_to_its_last_token():
    close(-listen([[row] for row in DESCRIPTION], [TOKENS])[0], K["min"])


@pytest.mark.parametrize("reduction", K)
def test_a_distribution_drawn_in_vain_does_not_count(reduction):
    """Stopping is checked one step late on a GPU: the last token is not among the sequences."""
    rows = [[row] for row in [*DESCRIPTION, LAST]]
    close(-listen(rows, [[*TOKENS, 2]], reduction, drawn=3)[0], K[reduction])


@pytest.mark.parametrize("reduction", K)
@pytest.mark.parametrize("pad", [EOS, 2])
def test_rows_of_different_lengths(reduction, pad):
    """Row 0 ends after three tokens, row 1 after one, row 2 at once; then they are padded."""
    steps = [[row, row, LAST] for row in DESCRIPTION] + [[LAST, LAST, LAST]]
    steps[1][1] = LAST
    tokens = [[*TOKENS, EOS], [1, EOS, pad, pad], [EOS, pad, pad, pad]]
    g = listen(steps, tokens, reduction)
    close(-g[0], K[reduction])
    close(g[1], [-2.647871, -0.647871, -1.647871, -2.147871, -3.647871, -2.647871])
    assert g[2].eq(0).all()


def test_a_row_without_a_description_is_greedy():
    g = listen([[LAST], [LAST]], [[EOS, EOS]])
    assert g.eq(0).all()
    for logits in (STEP_1, STEP_2, tensor([[1.0, 2, 2, 0, 0, 0]])):
        assert scored(Grounded(), logits, g).argmax() == logits.argmax()


def test_any_of_several_ends_of_sequence():
    rows = [[row] for row in [*DESCRIPTION, LAST]]
    close(-listen(rows, [[*TOKENS, 5]], eos=(EOS, 5))[0], K["min"])


def test_half_precision_is_summed_in_single():
    rows = [[row] for row in DESCRIPTION]  # exact in bfloat16
    close(-listen(rows, [TOKENS], "avg", dtype=torch.bfloat16)[0], K["avg"])


def test_listening_to_generate(llava):
    """Rows of a left-padded batch, of which two end early, against the logits of that call."""
    model, make_inputs = llava
    inputs = make_inputs([[5, IMAGE, 7, 8], [IMAGE, 9]])
    length = inputs["input_ids"].shape[1]
    call = dict(max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    plain = model.generate(**inputs, **call).sequences
    ends = [int(plain[0, length + 3]), int(plain[1, length + 1])]
    support = Support("avg", ends)
    said = model.generate(**inputs, **call, eos_token_id=ends, logits_processor=[support])
    g = support.finish(said.sequences)
    for row in range(2):
        answer = said.sequences[row, length:].tolist()
        counted = next(i for i, token in enumerate(answer) if token in ends)
        steps = [step[row].double().log_softmax(-1) for step in said.logits[:counted]]
        assert torch.equal(said.sequences[row, : length + counted], plain[row, : length + counted])
        wanted = torch.stack(steps).mean(0) if steps else torch.zeros(g.shape[1]).double()
        torch.testing.assert_close(g[row].double(), wanted, atol=1e-5, rtol=0)


def test_support_wants_to_have_listened():
    with pytest.raises(ValueError, match="has seen no distribution"):
        Support("min", [EOS]).finish(tensor([[1, 2]]))


def test_nucleus():
    rule = Grounded(truncation="nucleus")
    close(
        (STEP_1 / 0.5).softmax(-1)[0],
        [0.016070, 0.394234, 0.322771, 0.264263, 0.002656, 0.000005],
    )
    assert candidates(rule, STEP_1) == [1, 2]
    close(scored(rule, STEP_1, described()).softmax(-1)[0], [0, 0.731059, 0.268941, 0, 0, 0])
    rows = torch.randn(99, 50, generator=torch.Generator().manual_seed(0))
    kept = Grounded(truncation="nucleus", top_p=1e-9).keep(rows)  # sums of 50 may fall short of 1
    assert kept.nonzero()[:, 1].tolist() == rows.argmax(-1).tolist()
    assert candidates(Grounded(truncation="nucleus", top_p=1), STEP_1) == list(range(6))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_nucleus_is_that_of_transformers(top_p):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    kept = Grounded(truncation="nucleus", top_p=top_p).keep(logits)
    assert torch.equal(kept, TopPLogitsWarper(top_p)(None, logits / 0.5).isfinite())


def test_knee():
    ranked = STEP_1.softmax(-1)[0].sort(descending=True).values
    gaps = [0.031602, 0.028595, 0.204843, 0.039788, 0.026031]
    close(ranked[:-1] - ranked[1:], gaps)
    rule = Grounded(truncation="knee")
    assert candidates(rule, STEP_1) == [1, 2, 3]
    assert scored(rule, STEP_1, described()).argmax() == 3


@pytest.mark.parametrize("truncation", ["plausibility", "nucleus", "knee"])
def test_candidates_do_not_change_with_a_shift(truncation):
    """Beam search cuts log-probabilities, the other loops logits."""
    rule = Grounded(truncation=truncation)
    for logits in (STEP_1, STEP_2):
        assert torch.equal(rule.keep(logits), rule.keep(logits.log_softmax(-1)))
        assert torch.equal(rule.keep(logits), rule.keep(logits + 3))
        assert rule.keep(logits).any()


def test_rows_do_not_meet():
    """One cut, and one g, for each row."""
    swapped = torch.cat([described("min"), described("sum")])
    both = scored(Grounded(), torch.cat([STEP_1, STEP_2]), swapped)
    assert torch.equal(both[:1], scored(Grounded(), STEP_1, described("min")))
    assert torch.equal(both[1:], scored(Grounded(), STEP_2, described("sum")))


def test_alpha_1_is_greedy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits, g = torch.randn(2, 3, 30, generator=generator)
        scores = scored(Grounded(alpha=1), logits, g)
        assert torch.equal(scores.argmax(-1), logits.argmax(-1))
        assert scores.isfinite().sum() == 3


@pytest.mark.parametrize(
    ("logits", "best"),
    [([0.0, 1, 3, 3, 2, 0], 2), ([0.0, 3, 1, 0, 2, 3], 1), ([9.0, 1, 0, 2, 0, 0], 3)],
)
def test_equal_support_is_decided_by_the_logits_then_by_the_lower_id(logits, best):
    g = tensor([[-1.0, -0.5, -0.5, -0.5, -1.0, -0.5]])
    scores = scored(Grounded(alpha=1e-9), tensor([logits]), g)[0]
    assert (scores == scores.max()).nonzero().flatten().tolist() == [best]
    torch.testing.assert_close(scores, g[0], atol=1e-6, rtol=0)  # a step of float32


def test_a_token_that_is_no_candidate_does_not_decide():
    """The best of all tokens is cut; two candidates are equal below it."""
    g = tensor([[-0.1, -0.5, -0.5, -2.0]])
    scores = scored(Grounded(alpha=0.1), tensor([[-9.0, 1.0, 2.0, 0.5]]), g)[0]
    assert scores.argmax() == 2
    assert scores[0] == -INF
    assert scores[1] < scores[2]


def test_mixing_in_the_models_own_log_probabilities():
    g = described()
    scores = scored(Grounded(mix=0.25), STEP_1, g)
    own = [math.log(p) for p in (0.067047, 0.332088, 0.300486, 0.271891)]  # the note's softmax
    wanted = [0.75 * p - 0.25 * k for p, k in zip(own, K["min"][:4], strict=True)]
    close(scores[0], [*wanted, -INF, -INF], dict(atol=1e-5, rtol=0))


def test_without_grounding_the_models_own_ranking_is_left_and_nothing_is_needed():
    assert Grounded(mix=0)([STEP_1])[0].argsort(descending=True)[:4].tolist() == [1, 2, 3, 0]


def test_grounded_wants_a_description():
    with pytest.raises(ValueError, match="a preparation that describes the image"):
        Grounded()([STEP_1])


def test_it_needs_no_other_branch_and_always_cuts():
    for rule in (Grounded(), Grounded(alpha=1), Grounded(mix=0)):
        assert not rule.needs.others
        assert rule.needs.cut
        assert rule.needs != Needs()


def test_combine_scores_every_token():
    """What is left when a user's ban has emptied a row."""
    scores = Grounded().combine([STEP_1], State(notes={"support": described()}))
    close(-scores[0], K["min"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(truncation="top"), "truncation must be one of plausibility, nucleus, knee"),
        (dict(alpha=0), r"alpha must be in \(0, 1\]"),
        (dict(alpha=math.nan), r"alpha must be in \(0, 1\]"),
        (dict(top_p=1.1), r"top_p must be in \(0, 1\]"),
        (dict(temperature=0), "temperature must be a finite number >= 1e-30"),
        (dict(temperature=INF), "temperature must be a finite number >= 1e-30"),
        (dict(mix=-0.1), r"mix must be in \[0, 1\]"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        Grounded(**wrong)


def test_reduction_is_checked():
    with pytest.raises(ValueError, match="reduction must be one of min, avg, sum"):
        Support("max", [EOS])
