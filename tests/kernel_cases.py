"""Inputs of attention on odd shapes, and the comparison of the kernel with its definition.

Shared by `test_kernel.py` and `benchmarks/device.py`. Importing this imports Triton; a CPU needs
`TRITON_INTERPRET=1`, set before.
"""

import itertools
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton

from sightline.attention import kernel, reference
from sightline.attention.reference import KeyWeights, Record

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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
        return KeyWeights(gain=gain, bias=bias, first_query=queries - 1)
    if kind == "rows":
        rows = torch.tensor([1, queries // 2], device=DEVICE)
        return KeyWeights(scale=scale, gain=gain, first_query=rows)
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
    chosen = SimpleNamespace(**{"mask": "none", "record": "none", "weights": "none", **kinds})
    mask, causal = make_mask(chosen.mask, batch, heads[0], queries, keys)
    return {
        "query": strided(batch, queries, heads[0], size, dtype=dtype, seed=1).transpose(1, 2),
        "key": strided(batch, heads[1], keys, size, dtype=dtype, seed=2),
        "value": strided(batch, keys, heads[1], size, dtype=dtype, seed=3).transpose(1, 2),
        "scaling": size**-0.5,
        "mask": mask,
        "causal": causal,
        "weights": make_weights(chosen.weights, batch, heads[0], queries, keys),
        "record": make_record(chosen.record, batch, keys),
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


@contextmanager
def bf16_products() -> Iterator[None]:
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

    with patch.object(InterpreterBuilder, "create_dot", widened):
        yield


@contextmanager
def nothing_is_written() -> Iterator[None]:
    """Every tensor that the kernel allocates begins as NaN, so that what it leaves out shows."""

    def filled(*args, **kwargs):
        tensor = torch.empty(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.zero_()

    with patch.object(kernel, "empty", filled):
        yield
