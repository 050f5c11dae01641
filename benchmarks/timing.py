"""How rows are timed side by side, and what is read off their rounds."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from machine import in_use, is_cuda, peak, reset_peak, synchronise
from torch.profiler import ProfilerActivity, profile


@dataclass
class Row:
    """One decoder with one cache.

    Args:
        key: Name on the command line and in targets.
        name: Name in tables.
        cache: "dynamic", "static" or "compiled".
        run: Answers as many tokens as it is given.
        amateurs: Branches besides the expert; None where the row is not made of branches.
        first: Milliseconds to the first token, one per round.
        per_token: Milliseconds of a later token, one per round.
        kept: Bytes that stay taken between answers: graphs and what they hold.
        peak: Bytes at the peak of an answer beyond the weights.
    """

    key: str
    name: str
    cache: str
    run: Callable[[int], Any] = field(repr=False)
    amateurs: int | None = None
    first: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    kept: float = 0.0
    peak: float = 0.0


@dataclass(frozen=True)
class Spread:
    """Of all rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round, so that a drift of the machine cancels."""
    return [value / other for value, other in zip(values, base, strict=True)]


def measure(rows: Sequence[Row], tokens: int, rounds: int, device: str) -> None:
    """Fills in the rows: each round runs all of them, one after another."""
    warm_up(rows, tokens, device)
    for number in range(rounds):
        for row in rows:
            first = timed(row.run, 1, device)
            whole = timed(row.run, tokens, device)
            row.first.append(first)
            row.per_token.append((whole - first) / (tokens - 1))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for row in rows:
        row.peak = row.kept + allocated_peak(row.run, tokens, device)


@torch.no_grad()
def warm_up(rows: Sequence[Row], tokens: int, device: str) -> None:
    """A short answer of each; of compiled ones four of full length.

    A static cache of another length is compiled again, and a longer one lengthens those of all
    calls to come, so compiled rows are warmed up once more after the others. The second of two
    answers records the graph.
    """
    compiled = [row for row in rows if row.cache == "compiled"]
    for row in (*rows, *compiled):
        before = in_use(device)
        for length in (tokens, tokens) if row.cache == "compiled" else (2,):
            row.run(length)
        if is_cuda(device):
            row.kept += in_use(device) - before


@torch.no_grad()
def timed(run: Callable[[int], Any], tokens: int, device: str) -> float:
    """Milliseconds."""
    synchronise(device)
    start = time.perf_counter()
    run(tokens)
    synchronise(device)
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def allocated_peak(run: Callable[[int], Any], tokens: int, device: str) -> float:
    """Bytes of tensors at the peak of one answer beyond those that were there before it."""
    gc.collect()
    if is_cuda(device):
        synchronise(device)
        reset_peak(device)
        before = in_use(device)
        run(tokens)
        return peak(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run(tokens)
    return peak_of(
        event.nbytes()
        for event in watched.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )


def peak_of(changes: Any) -> float:
    """The largest sum of the first so many changes, in bytes; 0 at least."""
    total = highest = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return float(highest)
