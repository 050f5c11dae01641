"""How rows are timed side by side, and what is read off their rounds."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        check: Called with the tokens of an answer before anything is timed: what is wrong with
            the row's logits, empty if nothing is. None: not checked.
        wrong: What the check said.
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
    check: Callable[[int], str] | None = field(default=None, repr=False)
    wrong: str = ""


@dataclass(frozen=True)
class Spread:
    """Of all rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round, so that a drift of the machine cancels; of as many rounds as both have."""
    return [value / other for value, other in zip(values, base, strict=False)]


def measure(
    rows: Sequence[Row], tokens: int, rounds: int, device: str, until: float = math.inf
) -> list[str]:
    """Fills in the rows: each round runs all of them, one after another.

    Args:
        until: Of `time.monotonic`; from then on no row is warmed up and no round begun.

    Returns:
        Notes about what there was no time for. Rows that were not measured have no rounds.
    """
    notes = []
    warm = warm_up(rows, tokens, device, until)
    if late := rows[len(warm) :]:
        notes.append(f"Not measured, time was over: {named(late)}.")
    rows = [row for row in warm if not row.wrong]
    for number in range(rounds):
        if time.monotonic() > until:
            notes.append(f"Time was over after {number} of {rounds} rounds of {named(rows)}.")
            break
        for row in rows:
            first = timed(row.run, 1, device)
            whole = timed(row.run, tokens, device)
            row.first.append(first)
            row.per_token.append((whole - first) / (tokens - 1))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for row in rows:
        if row.first:
            row.peak = row.kept + allocated_peak(row.run, tokens, device)
    return notes


def named(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.name} ({row.cache})" for row in rows)


@torch.no_grad()
def warm_up(
    rows: Sequence[Row], tokens: int, device: str, until: float = math.inf
) -> Sequence[Row]:
    """Checks each row, then has a short answer of it; of compiled ones four of full length.

    A static cache of another length is compiled again, and a longer one lengthens those of all
    calls to come, so compiled rows are warmed up once more after the others. The second of two
    answers records the graph.

    Returns:
        The first rows, those that were begun before `until`.
    """
    warm: list[Row] = []
    for row in rows:
        if time.monotonic() > until:
            break
        if row.check is not None:
            with kept(row, device):
                row.wrong = row.check(tokens)
        warm.append(row)
        warm_up_once(row, tokens, device)
    for row in warm:
        if row.cache == "compiled":
            warm_up_once(row, tokens, device)
    return warm


def warm_up_once(row: Row, tokens: int, device: str) -> None:
    if row.wrong:
        return
    with kept(row, device):
        for length in (tokens, tokens) if row.cache == "compiled" else (2,):
            row.run(length)


@contextmanager
def kept(row: Row, device: str) -> Iterator[None]:
    """Counts the bytes that are taken inside and not given back."""
    before = in_use(device)
    yield
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
