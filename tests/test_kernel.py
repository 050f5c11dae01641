"""The kernel equals its definition: `TRITON_INTERPRET=1 pytest tests/test_kernel.py`.

With a GPU and without that variable, the same cases run compiled. Without either there is nothing
to run here; `test_reference.py` then runs this file under the interpreter.
"""

import itertools
import math
import os
from types import SimpleNamespace

import pytest
import torch

from sightline.attention.reference import KeyWeights

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    reason = "needs a GPU or TRITON_INTERPRET=1 (test_reference.py runs this file with it)"
    pytest.skip(reason, allow_module_level=True)

import kernel_cases  # noqa: E402 (registers ops, so only where they can run)
from kernel_cases import CASES, DEVICE, FACTORS, compare, make, named, strided  # noqa: E402

from sightline.attention import kernel  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def bf16_products():
    with kernel_cases.bf16_products():
        yield


@pytest.fixture(autouse=True)
def nothing_is_written():
    with kernel_cases.nothing_is_written():
        yield


def by_cost(cases):
    """Of those that take longest under the interpreter, all but the first are slow."""
    long = [case for case in cases if case["keys"] == 1000 and case["queries"] > 1]
    return [
        pytest.param(case, marks=pytest.mark.slow) if case in long[1:] else case for case in cases
    ]


@pytest.mark.parametrize("case", by_cost(CASES), ids=named)
def test_equals_the_reference(case):
    compare(make(**case))


def test_every_pair_occurs():
    """The generator is seen to cover, by a count that does not share its code."""
    for a, b in itertools.combinations(FACTORS, 2):
        seen = {(case[a], case[b]) for case in CASES}
        assert len(seen) == len(FACTORS[a]) * len(FACTORS[b])


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("queries", [1, 4])
def test_small_heads(size, queries):
    """As tiny test models have them."""
    compare(make(keys=20, size=size, queries=queries, mask="causal", weights="gain", record="all"))


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_one_split_and_many(heads, monkeypatch):
    """A busy device needs no splits, and then no second pass unless something is recorded."""
    for programs in (1, 8, 64):
        monkeypatch.setattr(kernel, "DECODE_PROGRAMS", programs)
        for record in ("none", "mass", "all"):
            compare(make(keys=200, heads=heads, weights="per head", record=record))


@pytest.mark.parametrize("mask", ["causal", "window"])
def test_large_tiles(mask, monkeypatch):
    """A prefill that fills the device takes tiles of 128 queries."""
    monkeypatch.setattr(kernel, "PREFILL_PROGRAMS", 1)
    inputs = make(keys=200, queries=200, heads=(2, 1), mask=mask, weights="last", record="all")
    compare(inputs)


def test_strides_that_are_not_one():
    inputs = make(keys=70, record="all")
    for name in ("query", "key", "value"):
        inputs[name] = inputs[name].repeat_interleave(2, dim=-1)[..., ::2]
    weight = strided(2, 4, 140, seed=20)[..., ::2]
    inputs["weights"] = KeyWeights(gain=weight)
    assert inputs["key"].stride(-1) == 2
    compare(inputs)
    inputs["query"] = strided(2, 4, 64, 6, seed=21).transpose(-1, -2)
    compare(inputs)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("queries", [1, 6])
def test_a_query_that_sees_nothing_gets_zeros(lowest, queries):
    inputs = make(keys=65, queries=queries, weights="gain", record="all")
    inputs["mask"] = torch.full((2, 1, queries, 65), lowest, device=DEVICE)
    output, recorded = kernel.attend(**inputs)
    assert not output.any()
    assert not any(tensor.any() for tensor in recorded)


@pytest.mark.parametrize("queries", [1, 70])
@pytest.mark.parametrize("broken", ["mask", "stride", "heads"])
def test_a_broken_kernel_is_seen(broken, queries, monkeypatch):
    """The comparison fails if the mask, a stride or the head mapping is wrong."""
    inputs = make(keys=65, queries=queries, mask="per head", weights="gain", record="row")
    compare(inputs)
    heads, as_mask = kernel.Heads, kernel.as_mask
    if broken == "mask":  # that of the first head for all
        monkeypatch.setattr(kernel, "as_mask", lambda *args: as_mask(*args)._replace(h=0))
    elif broken == "stride":  # the cache read as if it were packed

        def packed(at, *strides):
            return heads(at, *torch.empty(at.shape).stride())

        monkeypatch.setattr(kernel, "Heads", packed)
    else:  # every query head reads the first KV head

        def first(at, b, h, n, d):
            return heads(at, b, 0 if at.shape[1] == 2 else h, n, d)

        monkeypatch.setattr(kernel, "Heads", first)
    with pytest.raises(AssertionError, match="not close"):
        compare(inputs)


def test_inputs_that_do_not_fit_are_refused():
    inputs = make()
    with pytest.raises(ValueError, match="one dtype"):
        kernel.attend(**{**inputs, "key": inputs["key"].half()})
    with pytest.raises(ValueError, match="one head size"):
        kernel.attend(**{**inputs, "query": inputs["query"][..., :32]})
    with pytest.raises(ValueError, match="broadcast"):
        kernel.attend(**{**inputs, "mask": torch.ones(2, 1, 1, 64, dtype=bool, device=DEVICE)})


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("record", ["none", "all"])
def test_the_ops_are_well_formed(queries, record):
    """Schema, fake implementation and tracing with dynamic shapes, by torch's own checks."""
    inputs = make(keys=65, queries=queries, mask="causal", weights="rows", record=record)
    name = "attend_decode" if queries == 1 else "attend_prefill"
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        op = getattr(torch.ops.sightline, name).default
        seen = SimpleNamespace(**{name: lambda *args: calls.append(args) or op(*args)})
        patch.setattr(torch.ops, "sightline", seen)
        kernel.attend(**inputs)
    torch.library.opcheck(op, calls[0])


@pytest.mark.parametrize("queries", [1, 6])
def test_under_compile(queries):
    """One graph without breaks, also as the cache grows."""
    torch.compiler.reset()
    compiled = torch.compile(kernel.attend, backend="aot_eager", fullgraph=True)
    for keys in (64, 65, 66):
        inputs = make(keys=keys, queries=queries, mask="causal", weights="gain", record="all")
        output, recorded = compiled(**inputs)
        expected, eager = kernel.attend(**inputs)
        assert torch.equal(output, expected)
        assert all(map(torch.equal, recorded, eager))


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are CUDA's")
@pytest.mark.parametrize("queries", [1, 70])
def test_in_a_cuda_graph(queries):
    inputs = make(keys=300, queries=queries, mask="causal", weights="rows", record="all")
    kernel.attend(**inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, recorded = kernel.attend(**inputs)
    inputs["query"].copy_(inputs["query"].flip(0))
    graph.replay()
    expected, eager = kernel.attend(**inputs)
    assert torch.equal(output, expected)
    assert all(map(torch.equal, recorded, eager))
