"""Worked numbers of the methods' notes, and what the definition promises."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import tensor

from sightline.attention import reference
from sightline.attention.reference import KeyWeights, Record, attend

INF = math.inf
SIX_DIGITS = {"atol": 1.5e-6, "rtol": 0}  # float32, of numbers up to 1
FLOAT32 = {"atol": 1e-6, "rtol": 1e-5}  # two orders of summation


def probabilities(logits, weights=None, mask=None, queries=1):
    """`[K]` logits of every query -> `[B, K]`: values are the unit vectors, so the output is p."""
    keys = len(logits)
    query = torch.eye(1, keys).expand(1, 1, queries, keys)
    key = torch.zeros(1, 1, keys, keys)
    key[..., 0] = tensor(logits)
    value = torch.eye(keys)[None, None]
    output, _ = attend(query, key, value, scaling=1.0, mask=mask, weights=weights)
    return output[0, :, 0]


def per_key(*numbers):
    return tensor(numbers).view(1, 1, -1)


@pytest.mark.parametrize(
    ("alpha", "expected", "image"),
    [
        (0.0, [0.218751, 0.132679, 0.053943, 0.594627], 0.186622),
        (0.2, [0.214789, 0.143977, 0.057378, 0.583856], 0.201355),
        (0.5, [0.208408, 0.162308, 0.062771, 0.566512], 0.225080),
    ],
)
def test_gain_of_pai(alpha, expected, image):
    """peers.md 1.4; the image is keys 1 and 2."""
    weights = KeyWeights(gain=per_key(0.0, alpha, alpha, 0.0))
    seen = probabilities([1.0, 0.5, -0.4, 2.0], weights)
    torch.testing.assert_close(seen, tensor([expected]), **SIX_DIGITS)
    assert seen[0, 1:3].sum().item() == pytest.approx(image, abs=1.5e-6)


def test_scale_of_vaf():
    """peers.md 3: a negative image score falls under a scale above 1 (0.054003 to 0.048817)."""
    logits = [1.2, 0.8, 1.0, -0.6, 0.3]
    before = tensor([[0.326699, 0.218993, 0.267479, 0.054003, 0.132826]])
    after = tensor([[0.304318, 0.208111, 0.307377, 0.048817, 0.131377]])
    weights = KeyWeights(scale=per_key(0.95, 0.95, 1.15, 1.15))  # the last key is neutral
    torch.testing.assert_close(probabilities(logits), before, **SIX_DIGITS)
    torch.testing.assert_close(probabilities(logits, weights), after, **SIX_DIGITS)


def test_scale_of_vasparse():
    """vasparse.md 5, the sink: factors from column sums that the recording itself gives."""
    rows = tensor(
        [[1.0, 0.0, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0], [0.6, 0.1, 0.3, 0.0], [0.5, 0.1, 0.1, 0.3]]
    )
    _, recorded = attend(
        rows.log().clamp_min(-100)[None, None],
        torch.eye(4)[None, None],
        torch.eye(4)[None, None],
        scaling=1.0,
        causal=True,
        record=Record(columns=True),
    )
    columns = tensor([2.8, 0.5, 0.4, 0.3])
    torch.testing.assert_close(recorded.columns, columns.view(1, 1, 4), **SIX_DIGITS)
    factors = 1 + 0.1 - 0.1 * recorded.columns.softmax(dim=-1)
    expected = tensor([1.021449, 1.092125, 1.092874, 1.093552])
    torch.testing.assert_close(factors[0, 0], expected, **SIX_DIGITS)
    logits = [3.0, 1.0, 0.5, 2.0]
    before = tensor([[0.630796, 0.085369, 0.051779, 0.232057]])
    after = tensor([[0.611358, 0.085069, 0.049293, 0.254281]])
    torch.testing.assert_close(probabilities(logits), before, **SIX_DIGITS)
    torch.testing.assert_close(probabilities(logits, KeyWeights(factors)), after, **SIX_DIGITS)


def test_bias_of_sid_hides_keys():
    """A hidden key is as good as absent; sid.md 5 hides 2, 3, 4 and 6 of ten."""
    logits = [0.3, 0.1, 0.9, -0.4, 1.2, 0.5, -2.0, 0.7, 0.0, 1.1]
    hidden = [2, 3, 4, 6]
    kept = [0, 1, 5, 7, 8, 9]
    bias = torch.zeros(1, 1, 10)
    bias[..., hidden] = -INF
    seen = probabilities(logits, KeyWeights(bias=bias))
    assert not seen[0, hidden].any()
    alone = tensor(logits)[kept].softmax(dim=-1)
    torch.testing.assert_close(seen[0, kept], alone, **SIX_DIGITS)


def test_all_three_numbers():
    """[2, -1] becomes [2 * 0.5 + 2 * 1 - 1, -1 * 3 + 1 * 2 + 0] = [2, -1] again; then [2.5, -2]."""
    same = KeyWeights(per_key(0.5, 3.0), per_key(1.0, 2.0), per_key(-1.0, 0.0))
    logits = [2.0, -1.0]
    torch.testing.assert_close(probabilities(logits, same), probabilities(logits), **SIX_DIGITS)
    other = KeyWeights(per_key(0.5, 3.0), per_key(1.0, 1.0), per_key(-0.5, 0.0))
    torch.testing.assert_close(
        probabilities(logits, other), probabilities([2.5, -2.0]), **SIX_DIGITS
    )


def test_keys_after_the_first_w_are_neutral():
    logits = [0.5, 1.0, -1.0, 0.2]
    short = KeyWeights(per_key(1.5), per_key(0.2, 0.3), per_key(-1.0, 0.5))
    full = KeyWeights(
        per_key(1.5, 1.0, 1.0, 1.0), per_key(0.2, 0.3, 0.0, 0.0), per_key(-1.0, 0.5, 0.0, 0.0)
    )
    assert torch.equal(probabilities(logits, short), probabilities(logits, full))


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_rows_before_the_first_keep_their_scores(rows):
    logits = [0.5, 1.0, -1.0]
    weights = KeyWeights(gain=per_key(1.0, 0.0, 1.0), first_query=rows)
    seen = probabilities(logits, weights, queries=3)
    plain = probabilities(logits)
    edited = probabilities([1.0, 1.0, 0.0])
    expected = torch.cat([plain] * rows + [edited] * (3 - rows))
    torch.testing.assert_close(seen, expected, **SIX_DIGITS)


@pytest.fixture
def inputs():
    """Two rows, four heads on two, five queries of nine keys."""
    torch.manual_seed(0)
    return {
        "query": torch.randn(2, 4, 5, 8),
        "key": torch.randn(2, 2, 9, 8),
        "value": torch.randn(2, 2, 9, 8),
        "scaling": 8**-0.5,
    }


def plainly(query, key, value, scaling, visible=None, edit=None):
    """Softmax attention in float64 with keys repeated -> output, probabilities `[B, H, Q, K]`."""
    key, value = (x.double().repeat_interleave(2, dim=1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query.double(), key) * scaling
    if edit is not None:
        scores = edit(scores)
    if visible is not None:
        scores = scores.masked_fill(~visible, -INF)
    p = scores.softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bqhd", p, value), p


def same(actual, expected):
    torch.testing.assert_close(actual, expected.float(), **FLOAT32)


def test_plain_attention(inputs):
    output, recorded = attend(**inputs)
    same(output, plainly(**inputs)[0])
    assert recorded == (None, None, None, None)


def test_causal(inputs):
    """Query i of Q sees the keys up to i + K - Q."""
    visible = torch.ones(5, 9, dtype=torch.bool).tril(diagonal=4)
    output, _ = attend(**inputs, causal=True)
    same(output, plainly(**inputs, visible=visible)[0])


def test_more_queries_than_keys(inputs):
    """The first see nothing and get zeros."""
    inputs["key"], inputs["value"] = inputs["key"][:, :, :3], inputs["value"][:, :, :3]
    output, _ = attend(**inputs, causal=True)
    assert not output[:, :2].any()
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    inputs["query"] = inputs["query"][:, :, 2:]
    same(output[:, 2:], plainly(**inputs, visible=visible)[0])


@pytest.mark.parametrize("hidden", [-INF, torch.finfo(torch.float32).min])
def test_additive_and_bool_masks_agree(inputs, hidden):
    visible = torch.rand(2, 1, 5, 9) > 0.4
    visible[..., 0] = True
    additive = torch.zeros(2, 1, 5, 9).masked_fill(~visible, hidden)
    weights = KeyWeights(gain=torch.full((1, 1, 9), 2.0))  # an edited -inf would be NaN
    output, _ = attend(**inputs, mask=visible, weights=weights)
    added, _ = attend(**inputs, mask=additive, weights=weights)
    assert torch.equal(output, added)
    expected, _ = plainly(**inputs, visible=visible, edit=lambda s: s + 2 * s.abs())
    same(output, expected)


def test_additive_mask_comes_after_the_edit(inputs):
    mask = torch.randn(4, 5, 9)
    output, _ = attend(**inputs, mask=mask, weights=KeyWeights(scale=torch.full((1, 1, 9), 3.0)))
    same(output, plainly(**inputs, edit=lambda s: 3 * s + mask)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fully_masked_rows_give_zeros(inputs, dtype):
    lowest = torch.zeros(2, 1, 5, 9, dtype=dtype)
    lowest[1, :, 2] = torch.finfo(dtype).min
    weights = KeyWeights(gain=torch.ones(1, 1, 9))
    for mask in (lowest, lowest.double().where(lowest == 0, -INF).float(), lowest == 0):
        wanted = Record(row=True, columns=True)
        output, recorded = attend(**inputs, mask=mask, weights=weights, record=wanted)
        assert not output[1, 2].any()
        assert output[1, [0, 1, 3, 4]].all() and output[0].all()
        assert not recorded.columns.isnan().any()


def test_one_answer_per_row_of_the_batch(inputs):
    """rows as a tensor is each row's own int."""
    gain = torch.randn(2, 4, 9)
    both, _ = attend(**inputs, weights=KeyWeights(gain=gain, first_query=tensor([1, 4])))
    for row, first in enumerate([1, 4]):
        one = {**inputs, **{name: inputs[name][[row]] for name in ("query", "key", "value")}}
        alone, _ = attend(**one, weights=KeyWeights(gain=gain[[row]], first_query=first))
        torch.testing.assert_close(both[[row]], alone, **FLOAT32)


@pytest.fixture
def recording():
    return Record(row=True, groups=True, columns=True, mass=torch.rand(2, 7) > 0.5)


def test_recorded_are_the_softmax_probabilities(inputs, recording):
    visible = torch.ones(5, 9, dtype=torch.bool).tril(diagonal=4)
    _, p = plainly(**inputs, visible=visible)
    _, recorded = attend(**inputs, causal=True, record=recording)
    last = p[:, :, -1]
    same(recorded.row, last.mean(dim=1))
    same(recorded.groups, torch.stack([last[:, :2].mean(dim=1), last[:, 2:].mean(dim=1)], dim=1))
    same(recorded.columns, p.sum(dim=2))
    same(recorded.mass, (last[..., :7] * recording.mass[:, None]).sum(dim=-1))
    assert all(x.dtype == torch.float32 for x in recorded)
    torch.testing.assert_close(recorded.columns.sum(-1), torch.full((2, 4), 5.0), **FLOAT32)


def test_chunks_of_queries_change_nothing(inputs, recording, monkeypatch):
    everything = {
        **inputs,
        "mask": torch.rand(2, 1, 5, 9) > 0.2,
        "causal": True,
        "weights": KeyWeights(gain=torch.randn(2, 4, 6), first_query=tensor([1, 4])),
        "record": recording,
    }
    output, recorded = attend(**everything)
    monkeypatch.setattr(reference, "QUERIES_AT_ONCE", 1)
    for at_once in (1, 2 * 2 * 4 * 9):  # one query, two queries at a time
        monkeypatch.setattr(reference, "SCORES_AT_ONCE", at_once)
        again, chunked = attend(**everything)
        torch.testing.assert_close(again, output, **FLOAT32)
        torch.testing.assert_close(tuple(chunked), tuple(recorded), **FLOAT32)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="test_kernel.py itself runs")
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_kernel.py itself runs, compiled")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernel_agrees_under_the_interpreter(which):
    """In a process of its own: Triton reads the variable when it is imported, as others have."""
    file = str(Path(__file__).with_name("test_kernel.py"))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", which, file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
