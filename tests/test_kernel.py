"""The kernel equals its definition: `TRITON_INTERPRET=1 pytest tests/test_kernel.py`.

With a GPU and without that variable, the same cases run compiled. Without either there is nothing
to run here; `test_reference.py` then runs this file under the interpreter.
"""

import itertools
import math
import os
import random
from types import SimpleNamespace

import pytest
import torch

from sightline.attention import reference
from sightline.attention.reference import KeyWeights, Record

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    reason = "needs a GPU or TRITON_INTERPRET=1 (test_reference.py runs this file with it)"
    pytest.skip(reason, allow_module_level=True)

from sightline.attention import kernel  # noqa: E402 (registers ops, so only where they can run)

DEVICE = "cpu" if INTERPRETED else "cuda"

# Recorded values are float32 whatever comes in: both sides multiply the same rounded inputs and
# differ in the order of their sums only. The output is rounded to the input's dtype, and so are the
# kernel's probabilities before they meet the values (as in every flash attention): two roundings of
# half a unit in the last place (2**-9 in bf16, 2**-12 in fp16), on sums of values up to about 4.
RECORDED = {"atol": 1e-5, "rtol": 2e-5}
OUTPUT = {
    torch.float32: {"atol": 1e-5, "rtol": 2e-5},
    torch.float16: {"atol": 2e-3, "rtol": 2e-3},
    torch.bfloat16: {"atol": 1.6e-2, "rtol": 1.6e-2},
}

FACTORS = {
    "keys": [1, 7, 63, 64, 65, 1000],
    "size": [64, 80, 96, 128, 256],
    "heads": [(2, 2), (4, 2), (7, 1)],
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
    "mask": ["none", "causal", "padding", "additive", "window", "blind", "per head"],
    "record": ["none", "row", "groups", "columns", "mass", "all"],
    "queries": [1, 5, 70],  # 70: a tile and a bit; more queries than keys see nothing at first
    "weights": ["none", "scale", "gain", "bias", "per head", "short", "last", "rows"],
}


@pytest.fixture(scope="module", autouse=True)
def bf16_products():
    """Triton 3.9's interpreter multiplies the bit patterns of bf16 in a dot."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def widened(self, a, b, *rest):
        operands = (
            self.cast_impl(x, triton.language.float32)
            if x.dtype.scalar == triton.language.bfloat16
            else x
            for x in (a, b)
        )
        return dot(self, *operands, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", widened)
        yield


@pytest.fixture(autouse=True)
def nothing_is_written(monkeypatch):
    """Every tensor that the kernel allocates begins as NaN, so that what it leaves out shows."""

    def filled(*args, **kwargs):
        tensor = torch.empty(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.zero_()

    monkeypatch.setattr(kernel, "empty", filled)


def pairwise(factors, seed=0):
    """Cases in which every pair of values of two factors occurs, chosen greedily."""
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    draw = random.Random(seed)

    def covers(case):
        return missing.intersection(itertools.permutations(case.items(), 2))

    def grown():
        """One pair that is missing, and for each other factor what covers most."""
        case = dict(draw.choice(sorted(missing, key=str)))
        for name in names:
            values = draw.sample(factors[name], len(factors[name]))
            best = max(values, key=lambda value: len(covers({**case, name: value})))
            case.setdefault(name, best)
        return {name: case[name] for name in names}

    cases = []
    while missing:
        case = max((grown() for _ in range(20)), key=lambda case: len(covers(case)))
        missing -= covers(case)
        cases.append(case)
    return cases


CASES = pairwise(FACTORS)


def named(case):
    return "-".join(str(value).replace("torch.", "").replace(" ", "") for value in case.values())


def strided(*shape, dtype=torch.float32, seed=0):
    """Random numbers `shape` in the middle of a tensor that is NaN everywhere else."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.full([n + 3 for n in shape], math.nan, dtype=dtype, device=DEVICE)
    inner = around[tuple(slice(1, n + 1) for n in shape)]
    return inner.copy_(torch.randn(shape, generator=generator))


def make_mask(kind, batch, heads, queries, keys):
    """-> mask, causal"""
    here = torch.arange(queries, device=DEVICE)[:, None] + keys - queries
    at = torch.arange(keys, device=DEVICE)
    behind = at <= here
    if kind == "causal":
        return None, True
    if kind == "padding":  # broadcast over the queries, which are causal besides
        starts = torch.tensor([0, min(3, keys - 1)], device=DEVICE)
        return (at >= starts[:, None])[:, None, None], True
    if kind == "window":
        return (behind & (at > here - 20))[None, None], False
    if kind == "additive":
        noise = strided(batch, 1, queries, keys, seed=5).to(torch.bfloat16)
        return noise.masked_fill(~behind, torch.finfo(torch.bfloat16).min), False
    if kind == "blind":  # a row without any key, another with
        mask = strided(batch, 1, queries, keys, dtype=torch.float16, seed=5)
        mask[0] = torch.finfo(torch.float16).min
        mask[1, :, 0] = -math.inf
        return mask, False
    if kind == "per head":
        return strided(1, heads, queries, keys, seed=6) > -0.5, False
    return None, False


def make_weights(kind, batch, heads, queries, keys):
    scale = 1 + 0.3 * strided(batch, 1, keys, seed=7)
    gain = 0.3 * strided(1, 1, keys, seed=8).abs()
    bias = strided(batch, 1, keys, seed=9)
    bias[..., ::3] = -math.inf
    if kind == "scale":
        return KeyWeights(scale=scale)
    if kind == "gain":
        return KeyWeights(gain=gain)
    if kind == "bias":
        return KeyWeights(bias=bias)
    if kind == "per head":
        return KeyWeights(
            scale=1 + 0.3 * strided(batch, heads, keys, seed=10),
            gain=strided(1, heads, keys, seed=11),
            bias=strided(batch, heads, keys, seed=12),
        )
    if kind == "short":
        width = max(1, keys // 2)
        return KeyWeights(scale[..., :width], gain[..., : width - 1], bias[..., :width])
    if kind == "last":
        return KeyWeights(gain=gain, bias=bias, rows=queries - 1)
    if kind == "rows":
        rows = torch.tensor([1, queries // 2], device=DEVICE)
        return KeyWeights(scale=scale, gain=gain, rows=rows)
    return None


def make_record(kind, batch, keys):
    width = max(1, keys - 2)
    chosen = strided(batch, width, seed=13) > 0
    return {
        "none": None,
        "row": Record(row=True),
        "groups": Record(groups=True),
        "columns": Record(columns=True),
        "mass": Record(mass=chosen),
        "all": Record(row=True, groups=True, columns=True, mass=chosen[:1]),
    }[kind]


def make(keys=65, size=64, heads=(4, 2), dtype=torch.float32, queries=1, **kinds):
    """Inputs as transformers lays them out: heads transposed, keys a part of a larger cache."""
    batch = 2
    kinds = SimpleNamespace(**{"mask": "none", "record": "none", "weights": "none", **kinds})
    mask, causal = make_mask(kinds.mask, batch, heads[0], queries, keys)
    return {
        "query": strided(batch, queries, heads[0], size, dtype=dtype, seed=1).transpose(1, 2),
        "key": strided(batch, heads[1], keys, size, dtype=dtype, seed=2),
        "value": strided(batch, keys, heads[1], size, dtype=dtype, seed=3).transpose(1, 2),
        "scaling": size**-0.5,
        "mask": mask,
        "causal": causal,
        "weights": make_weights(kinds.weights, batch, heads[0], queries, keys),
        "record": make_record(kinds.record, batch, keys),
    }


def compare(inputs):
    """Raises where the kernel differs from the definition."""
    expected, recorded = reference.attend(**inputs)
    output, ours = kernel.attend(**inputs)
    torch.testing.assert_close(output, expected, **OUTPUT[output.dtype])
    for name, one, other in zip(recorded._fields, ours, recorded, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(one, other, **RECORDED)


@pytest.mark.parametrize("case", CASES, ids=named)
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
