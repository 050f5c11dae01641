"""Recalibrated attention against whatever else computes attention: time, bandwidth and memory.

    python benchmarks/attention.py --device cuda --out benchmarks/results/attention-h200.json

| setup | what it does |
|---|---|
| ours | `sightline.attention`, a gain on the image's keys as PAI has it, for every query |
| recording | the same; keeps the last query's row, groups and mass (decode) or columns (prefill) |
| SDPA | torch's, unedited, in the form that transformers calls: the yardstick |
| SDPA mask | the same with an additive mask on the image's keys: the price of a bias alone |
| flex | `flex_attention`, compiled for each shape, with the edit of "ours" |
| eager | that edit on a full matrix of probabilities, which is kept: what published code does |

"ours" is the Triton kernel on CUDA and the torch reference on the CPU, which is slow by design.

On CUDA a time is the device's, under CUDA graphs (a setup that cannot be captured is timed with
events, launch gaps included, and named). A graph runs over copies of the inputs in turn, together
more than three times the L2 cache; all setups of a shape run side by side in every round, and
a ratio is the median over rounds of the same round's ratio. Bandwidth counts keys and values once.
Memory is what one call takes beyond its inputs, its output included, but not the mask of size T x K
that "SDPA mask" and "eager" are given in prefill. Before it is timed, whatever edits is compared
with the reference; a difference is printed and ends the run with exit code 1.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from machine import (
    DTYPES,
    cache_bytes,
    copy_bandwidth,
    free_memory,
    in_use,
    is_cuda,
    machine,
    peak,
    reset_peak,
    synchronise,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from sightline.attention import reference
from sightline.attention.hook import attend_for
from sightline.attention.reference import KeyWeights, Record, Recorded
from sightline.json_text import json_text

ALPHA = 0.2
IMAGE = slice(35, 35 + 576)  # LLaVA-1.5's image in its prompt
BATCHES = (1, 2, 8, 16)
# Largest difference of one vector from the reference, relative to its length. Records are float32.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
RECORD_TOLERANCE = 1e-3
# Eager rounds scores and probabilities to the dtype.
EAGER_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
GRAPH_SECONDS = 1e-3
GRAPH_CALLS = 256
LEAD_MILLISECONDS = 50
BYTES_PER_SCORE = 12  # of eager attention: scores, float32 probabilities, both rounded

Copy = tuple[Tensor, Tensor, Tensor]  # query [B, H, Q, D], key and value [B, Hkv, K, D]
# Output [B, Q, H, D], and what was kept of the probabilities.
Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Family:
    heads: int
    kv_heads: int
    size: int
    keys: tuple[int, ...]


FAMILIES = {
    "LLaVA-1.5-7B": Family(32, 32, 128, (640, 1024, 2048, 4096)),
    "Qwen2.5-VL-7B": Family(28, 4, 128, (1024, 4096, 8192, 32768)),
}


@dataclass(frozen=True)
class Shape:
    """One call: `mode` "decode" has one query, "prefill" as many as keys."""

    model: str
    mode: str
    batch: int
    keys: int

    @property
    def family(self) -> Family:
        return FAMILIES[self.model]

    @property
    def name(self) -> str:
        return f"{self.model}-{self.mode}-b{self.batch}-k{self.keys}".lower()

    @property
    def queries(self) -> int:
        return 1 if self.mode == "decode" else self.keys

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.family.heads // self.family.kv_heads

    @property
    def scores(self) -> int:
        return self.batch * self.family.heads * self.queries * self.keys

    def kv_bytes(self, itemsize: int) -> int:
        return 2 * self.batch * self.family.kv_heads * self.keys * self.family.size * itemsize

    def query_bytes(self, itemsize: int) -> int:
        return self.batch * self.family.heads * self.queries * self.family.size * itemsize

    @property
    def operations(self) -> int:
        """Multiplications and additions that cannot be skipped: half the matrix in prefill."""
        return 4 * self.scores * self.family.size // (1 if self.mode == "decode" else 2)


@dataclass
class Row:
    """One setup at one shape. `rounds`: microseconds per call; `extra`: bytes."""

    shape: Shape
    setup: str
    timer: str
    extra: float
    rounds: list[float] = field(default_factory=list)

    @property
    def us(self) -> float:
        return statistics.median(self.rounds)


@dataclass
class Case:
    """A shape with what all setups share."""

    shape: Shape
    dtype: torch.dtype
    device: str

    def __post_init__(self):
        image = torch.zeros(self.shape.batch, self.shape.keys, dtype=torch.bool, device=self.device)
        image[:, IMAGE] = True
        self.image = image  # [B, K]
        self.gain = ALPHA * image.float()
        self.scaling = self.shape.family.size**-0.5
        self.causal = self.shape.mode == "prefill"

    def copy(self, seed: int) -> Copy:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape, family = self.shape, self.shape.family

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=self.device, dtype=self.dtype)

        held = (shape.batch, family.kv_heads, shape.keys, family.size)
        query = random(shape.batch, shape.queries, family.heads, family.size).transpose(1, 2)
        return query, random(*held), random(*held)

    def copies(self) -> list[Copy]:
        """As many as exceed three times the cache."""
        size = self.shape.kv_bytes(self.dtype.itemsize)
        size += self.shape.query_bytes(self.dtype.itemsize)
        return [self.copy(seed) for seed in range(3 * cache_bytes(self.device) // size + 1)]

    def record(self) -> Record:
        if self.causal:
            return Record(columns=True)
        return Record(row=True, groups=True, mass=self.image)

    def causal_mask(self) -> Tensor:
        """`[1, 1, Q, K]`, added."""
        ones = torch.ones(self.shape.queries, self.shape.keys, dtype=torch.bool, device=self.device)
        hidden = torch.zeros(ones.shape, dtype=self.dtype, device=self.device)
        return hidden.masked_fill_(ones.triu_(1), -math.inf)[None, None]


def ours(case: Case, record: Record | None = None) -> Run:
    attend = attend_for(torch.device(case.device))
    weights = KeyWeights(gain=case.gain[:, None])

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        return attend(
            query,
            key,
            value,
            scaling=case.scaling,
            causal=case.causal,
            weights=weights,
            record=record,
        )

    return run


def recording(case: Case) -> Run:
    return ours(case, case.record())


def sdpa(case: Case) -> Run:
    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        seen = scaled_dot_product_attention(
            query,
            key,
            value,
            scale=case.scaling,
            is_causal=case.causal,
            enable_gqa=case.shape.group > 1,
        )
        return seen.transpose(1, 2), None

    return run


def sdpa_mask(case: Case) -> Run:
    """As transformers does with a mask: grouped heads become queries, in prefill repeated keys."""
    bias = case.gain[:, None, None].to(case.dtype)
    if case.causal:
        bias = (case.causal_mask() + bias[:1]).expand(case.shape.batch, -1, -1, -1)
    group = case.shape.group

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        shape = query.shape
        if case.causal:
            key, value = repeat_kv(key, group), repeat_kv(value, group)
        elif group > 1:
            query = query.reshape(shape[0], -1, group, shape[-1])
        seen = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=case.scaling)
        return seen.reshape(shape).transpose(1, 2), None

    return run


def flex(case: Case) -> Run:
    """In decode grouped heads become queries: its decoding kernel takes no groups of 7 heads."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(query, key, value, gain, blocks):
        def edit(score, row, head, position, at):
            return score + score.abs() * gain[row, at]

        return flex_attention(
            query,
            key,
            value,
            score_mod=edit,
            block_mask=blocks,
            scale=case.scaling,
            enable_gqa=case.causal and case.shape.group > 1,
        )

    blocks = None
    if case.causal:
        blocks = create_block_mask(
            lambda row, head, position, at: position >= at,
            None,
            None,
            case.shape.queries,
            case.shape.keys,
            device=case.device,
        )
    # Else the ninth shape would meet the recompile limit and run uncompiled.
    torch.compiler.reset()
    compiled = torch.compile(attend, dynamic=False, fullgraph=True)

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        shape = query.shape
        if not case.causal:
            query = query.reshape(shape[0], -1, case.shape.group, shape[-1])
        seen = compiled(query, key, value, case.gain, blocks)
        return seen.reshape(shape).transpose(1, 2), None

    return run


def eager(case: Case) -> Run:
    wanted = BYTES_PER_SCORE * case.shape.scores
    free = 0.8 * free_memory(case.device)
    if wanted > free:
        raise MemoryError(f"its matrices need {wanted / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
    mask = case.causal_mask() if case.causal else None
    group = case.shape.group

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
        key, value = repeat_kv(key, group), repeat_kv(value, group)
        scores = torch.matmul(query, key.transpose(2, 3)) * case.scaling
        scores[..., IMAGE] += ALPHA * scores[..., IMAGE].abs()
        if mask is not None:
            scores = scores + mask
        kept = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        seen = torch.matmul(kept, value).transpose(1, 2).contiguous()
        return seen, kept

    return run


CONTENDERS: dict[str, Callable[[Case], Run]] = {
    "SDPA": sdpa,
    "ours": ours,
    "recording": recording,
    "SDPA mask": sdpa_mask,
    "flex": flex,
    "eager": eager,
}
OURS = ("ours", "recording")
EDITED = (*OURS, "flex", "eager")


class Graph:
    """Device time of one captured graph, which runs over the copies `passes` times."""

    name = "graph"

    def __init__(self, run: Run, copies: Sequence[Copy], passes: int):
        self.calls = passes * len(copies)
        self.milliseconds = 0.0
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for copy in copies[:3]:
                run(*copy)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Compilers' threads may be at work.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            for _ in range(passes):
                for copy in copies:
                    run(*copy)
        self.once()

    def once(self) -> float:
        """Microseconds per call. A first replay keeps the device busy while the timed one is
        launched; it would change nothing for a long one."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self.milliseconds < LEAD_MILLISECONDS:
            self.graph.replay()
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.milliseconds = start.elapsed_time(end)
        return 1000 * self.milliseconds / self.calls


class Events:
    """Time on the device's stream without a graph: gaps between launches included."""

    name = "events"

    def __init__(self, run: Run, copies: Sequence[Copy], passes: int):
        self.run, self.copies, self.passes = run, copies, passes

    def once(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.passes):
            for copy in self.copies:
                self.run(*copy)
        end.record()
        end.synchronize()
        return 1000 * start.elapsed_time(end) / (self.passes * len(self.copies))


class Clock:
    """Wall time on the CPU. Setups share `turn`, so that none finds what another has read."""

    name = "clock"

    def __init__(self, run: Run, turn: Iterator[Copy]):
        self.run, self.turn, self.calls = run, turn, 1
        self.calls = max(1, min(16, int(50_000 / self.once())))

    def once(self) -> float:
        start = time.perf_counter()
        for _ in range(self.calls):
            self.run(*next(self.turn))
        return 1e6 * (time.perf_counter() - start) / self.calls


def passes_over(shape: Shape, itemsize: int, copies: int) -> int:
    """How often a graph runs over the copies to last long enough for the clock of an event."""
    bytes_ = shape.kv_bytes(itemsize) + shape.query_bytes(itemsize)
    at_least = max(bytes_ / 4e12, shape.operations / 6e14)
    return max(1, round(min(GRAPH_CALLS, GRAPH_SECONDS / at_least) / copies))


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an output with gaps does not pass for an earlier one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def expected(case: Case, copy: Copy) -> tuple[Tensor, Recorded]:
    """The reference's answer. In prefill, where it is slow, of what lies farthest in memory alone:
    the last row's last KV head."""
    query, key, value = copy
    gain = case.gain
    if case.causal:
        query, key, value = query[-1:, -case.shape.group :], key[-1:, -1:], value[-1:, -1:]
        gain = gain[-1:]
    return reference.attend(
        query,
        key,
        value,
        scaling=case.scaling,
        causal=case.causal,
        weights=KeyWeights(gain=gain[:, None]),
        record=case.record(),
    )


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest distance of a vector (the last dimension) from the wanted one, over its length."""
    if found.shape != wanted.shape:
        return math.nan
    found, wanted = found.float(), wanted.float()
    lengths = wanted.norm(dim=-1).clamp_min(1e-12)
    return float(((found - wanted).norm(dim=-1) / lengths).max())


def check(case: Case, name: str, run: Run, copy: Copy, wanted: tuple[Tensor, Recorded]) -> str:
    """What is wrong with a setup's answer; empty if nothing is."""
    with unwritten_is_nan() if name in OURS else nullcontext():
        output, kept = run(*copy)
    heads = slice(-case.shape.group, None)
    if case.causal:
        output = output[-1:, :, heads]
    tolerance = (EAGER_TOLERANCE if name == "eager" else TOLERANCE)[case.dtype]
    found = [("output", difference(output, wanted[0]), tolerance)]
    if name == "recording":
        if case.causal:
            kept = Recorded(columns=kept.columns[-1:, heads])
        found += [
            (part, difference(one, other), RECORD_TOLERANCE)
            for part, one, other in zip(Recorded._fields, kept, wanted[1], strict=True)
            if other is not None
        ]
    wrong = [f"{p} off by {d:.2g}, allowed {t:.2g}" for p, d, t in found if not d <= t]
    return "; ".join(wrong)


def extra_memory(run: Run, copy: Copy, device: str) -> float:
    """Bytes at the peak of one call beyond what was there before."""
    synchronise(device)
    reset_peak(device)
    before = in_use(device)
    run(*copy)
    synchronise(device)
    return peak(device) - before


def timer_of(run: Run, copies: list[Copy], turn: Iterator[Copy], case: Case, say: Callable) -> Any:
    if not is_cuda(case.device):
        return Clock(run, turn)
    passes = passes_over(case.shape, case.dtype.itemsize, len(copies))
    try:
        return Graph(run, copies, passes)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"cannot be captured, timed with events and launch gaps: {reason(error)}")
        torch.cuda.synchronize()
        return Events(run, copies, passes)


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


class Bench:
    """One run: what it has measured, and what it has to say about it."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = options.device
        self.dtype = DTYPES[options.dtype]
        self.began = time.monotonic()
        self.compiling = 0.0
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.copy_bandwidth = copy_bandwidth(self.device)

    @property
    def seconds_left(self) -> float:
        return 60 * self.options.minutes - (time.monotonic() - self.began)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)

    def fail(self, text: str) -> None:
        self.failures.append(text)
        print(f"FAILED: {text}", file=sys.stderr, flush=True)

    def measure(self, shape: Shape) -> None:
        if self.seconds_left <= 0:
            self.note(f"{shape.name}: not measured, --minutes {self.options.minutes:g} are over")
            return
        case = Case(shape, self.dtype, self.device)
        copies = case.copies()
        turn = itertools.cycle(copies)
        wanted = expected(case, copies[0])
        timers = {}
        for name in self.options.setups:
            if name == "flex" and self.compiling > 30 * self.options.minutes:
                self.note(f"{shape.name}: flex left out, half of --minutes went into compiling it")
                continue
            try:
                timer, row = self.prepare(case, name, copies, turn, wanted)
            except Exception as error:
                tell = self.fail if name in OURS else self.note
                tell(f"{shape.name}: {name} left out: {reason(error)}")
                continue
            timers[name] = timer
            self.rows.append(row)
        own = [row for row in self.rows if row.shape == shape]
        until = time.monotonic() + self.options.seconds
        for number in range(self.options.rounds):
            if number >= 3 and time.monotonic() > until:
                break
            for row in own:
                row.rounds.append(timers[row.setup].once())

    def prepare(
        self,
        case: Case,
        name: str,
        copies: list[Copy],
        turn: Iterator[Copy],
        wanted: tuple[Tensor, Recorded],
    ) -> tuple[Any, Row]:
        began = time.monotonic()
        run = CONTENDERS[name](case)
        run(*copies[0])
        synchronise(self.device)
        if name == "flex":
            self.compiling += time.monotonic() - began
        if name in EDITED:
            wrong = check(case, name, run, copies[0], wanted)
            if wrong:
                self.fail(f"{case.shape.name}: {name} is not the reference: {wrong}")
        extra = extra_memory(run, copies[0], self.device)
        timer = timer_of(
            run, copies, turn, case, lambda text: self.note(f"{case.shape.name}: {name} {text}")
        )
        return timer, Row(case.shape, name, timer.name, extra)

    def result(self, shapes: Sequence[Shape]) -> dict[str, Any]:
        return {
            "machine": machine(self.device),
            "dtype": self.options.dtype,
            "copy_gb_per_s": self.copy_bandwidth / 1e9,
            "cache_bytes": cache_bytes(self.device),
            "ours": implementation(self.device),
            "rows": [self.describe(row) for row in self.rows],
            "targets": self.targets(shapes),
            "notes": self.notes,
            "failures": self.failures,
        }

    def describe(self, row: Row) -> dict[str, Any]:
        base = self.found(row.shape, "SDPA")
        bandwidth = row.shape.kv_bytes(self.dtype.itemsize) / row.us * 1e6
        return {
            **asdict(row.shape),
            **asdict(row.shape.family),
            "keys": row.shape.keys,
            "setup": row.setup,
            "timer": row.timer,
            "us": row.us,
            "ratio_to_sdpa": None if base is None else ratio(row, base),
            "kv_mb": row.shape.kv_bytes(self.dtype.itemsize) / 1e6,
            "gb_per_s": bandwidth / 1e9,
            "share_of_copy": bandwidth / self.copy_bandwidth,
            "tflop_per_s": row.shape.operations / row.us / 1e6,
            "extra_mb": row.extra / 1e6,
            "rounds": row.rounds,
        }

    def found(self, shape: Shape, setup: str) -> Row | None:
        for row in self.rows:
            if row.shape == shape and row.setup == setup:
                return row
        return None

    def targets(self, shapes: Sequence[Shape]) -> list[dict[str, Any]]:
        """Lines for a GPU in bf16, which they are set for; none elsewhere."""
        if not is_cuda(self.device) or self.dtype != torch.bfloat16:
            return []
        return self.every_target(shapes)

    def every_target(self, shapes: Sequence[Shape]) -> list[dict[str, Any]]:
        decode = [shape for shape in shapes if shape.mode == "decode"]
        prefill = [shape for shape in shapes if shape.mode == "prefill"]
        single = [shape for shape in decode if shape.group == 1]
        grouped = [shape for shape in decode if shape.group > 1]
        large = [shape for shape in decode if shape.kv_bytes(self.dtype.itemsize) > 512e6]

        def times(one: str, other: str) -> Callable[[Shape], float | None]:
            def value(shape: Shape) -> float | None:
                rows = self.found(shape, one), self.found(shape, other)
                return None if None in rows else ratio(*rows)

            return value

        def share(shape: Shape) -> float | None:
            row = self.found(shape, "ours")
            if row is None:
                return None
            return shape.kv_bytes(self.dtype.itemsize) / row.us * 1e6 / self.copy_bandwidth

        def matrices(shape: Shape) -> float | None:
            row = self.found(shape, "recording")
            if row is None:
                return None
            columns = 4 * shape.batch * shape.family.heads * shape.keys
            beyond = row.extra - shape.query_bytes(self.dtype.itemsize) - columns
            return beyond / (shape.batch * shape.queries * shape.keys * self.dtype.itemsize)

        return [
            target("decode: ours / SDPA", "<=", 1.10, decode, times("ours", "SDPA")),
            target(
                "decode, heads of their own: recording / SDPA",
                "<=",
                1.20,
                single,
                times("recording", "SDPA"),
            ),
            target(
                "decode, grouped heads: recording / SDPA",
                "<=",
                1.30,
                grouped,
                times("recording", "SDPA"),
            ),
            target("decode: ours / flex", "<=", 1.00, decode, times("ours", "flex")),
            target(
                "decode, grouped heads: eager / ours", ">=", 3.0, grouped, times("eager", "ours")
            ),
            target(
                "decode, keys + values > 512 MB: ours / copy bandwidth", ">=", 0.8, large, share
            ),
            target("prefill: ours / SDPA", "<=", 1.25, prefill, times("ours", "SDPA")),
            target("prefill: recording / SDPA", "<=", 2.0, prefill, times("recording", "SDPA")),
            target(
                "prefill: recording's memory beyond output and columns / [B, T, K]",
                "<=",
                0.5,
                prefill,
                matrices,
            ),
        ]


def implementation(device: str) -> str:
    return attend_for(torch.device(device)).__module__


def ratio(one: Row, other: Row) -> float:
    return statistics.median(a / b for a, b in zip(one.rounds, other.rounds, strict=True))


def target(
    name: str,
    sense: str,
    limit: float,
    shapes: Sequence[Shape],
    value: Callable[[Shape], float | None],
) -> dict[str, Any]:
    """A line of the targets: the worst of all shapes, and whether every shape reaches it."""
    values = [(found, shape.name) for shape in shapes if (found := value(shape)) is not None]
    sign = 1 if sense == "<=" else -1
    good = sum(sign * found <= sign * limit for found, _ in values)
    worst = max(values, key=lambda pair: sign * pair[0], default=(None, None))
    reached = "yes" if good == len(shapes) else "no" if good < len(values) else "unmeasured shapes"
    return {
        "target": name,
        "wanted": f"{sense} {limit:.2f}",
        "measured": worst[0],
        "at": worst[1],
        "shapes_reached": good,
        "shapes_measured": len(values),
        "shapes": len(shapes),
        "reached": reached if shapes else "no such shape in this run",
    }


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def tables(rows: Sequence[dict[str, Any]], setups: Sequence[str]) -> str:
    """Markdown: time, bandwidth and memory of each mode, a line for each shape."""
    texts = []
    kinds: dict[str, Callable[[dict[str, Any]], str]] = {
        "microseconds (x SDPA)": lambda row: (
            f"{row['us']:.4g}"
            + ("" if row["ratio_to_sdpa"] is None else f" ({row['ratio_to_sdpa']:.2f})")
        ),
        "keys + values, GB/s (share of a copy's)": lambda row: (
            f"{row['gb_per_s']:.4g} ({row['share_of_copy']:.0%})"
        ),
        "TFLOP/s": lambda row: f"{row['tflop_per_s']:.3g}",
        "memory beyond the inputs, MB": lambda row: f"{row['extra_mb']:.4g}",
    }
    for mode in ("decode", "prefill"):
        chosen = [row for row in rows if row["mode"] == mode]
        places = sorted({(row["model"], row["batch"], row["keys"]) for row in chosen})
        if not places:
            continue
        cells = {(r["model"], r["batch"], r["keys"], r["setup"]): r for r in chosen}
        left_out = "TFLOP/s" if mode == "decode" else "keys + values, GB/s (share of a copy's)"
        for kind, write in kinds.items():
            if kind == left_out:
                continue
            lines = [
                [
                    *map(str, place),
                    *(
                        write(cells[p]) if (p := (*place, name)) in cells else "-"
                        for name in setups
                    ),
                ]
                for place in places
            ]
            texts.append(f"{mode}: {kind}\n" + markdown(["model", "B", "K", *setups], lines, 1))
    return "\n\n".join(texts)


def target_table(targets: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            line["target"],
            line["wanted"],
            "-" if line["measured"] is None else f"{line['measured']:.2f}",
            line["at"] or "-",
            f"{line['shapes_reached']} of {line['shapes']}",
            line["reached"],
        ]
        for line in targets
    ]
    return markdown(["target", "wanted", "worst", "at", "shapes", "reached"], lines, 1)


def plot(rows: Sequence[dict[str, Any]], setups: Sequence[str], title: str, path: Path) -> str:
    """Decode's ratio to SDPA over K, a panel for each model and batch. Says what it did."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        return f"no plot: {error}"
    rows = [row for row in rows if row["mode"] == "decode" and row["ratio_to_sdpa"] is not None]
    if not rows:
        return "no plot: nothing was measured in decode"
    models = list(dict.fromkeys(row["model"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    figure, panels = pyplot.subplots(
        len(models),
        len(batches),
        figsize=(1.5 + 3 * len(batches), 1.2 + 2.6 * len(models)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    drawn: dict[str, Any] = {}
    for (i, model), (j, batch) in itertools.product(enumerate(models), enumerate(batches)):
        panel = panels[i, j]
        panel.axhline(1.1, color="0.7", linestyle="--", linewidth=1)
        for number, name in enumerate(setups):
            line = sorted(
                (row["keys"], row["ratio_to_sdpa"])
                for row in rows
                if (row["model"], row["batch"], row["setup"]) == (model, batch, name)
            )
            style = {"color": f"C{number}", "marker": "o", "markersize": 3}
            if line:
                drawn[name] = panel.plot(*zip(*line, strict=True), **style)[0]
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_title(f"{model}, batch {batch}", fontsize=9)
        panel.grid(alpha=0.2)
        if i == len(models) - 1:
            panel.set_xlabel("keys (tokens)")
        if j == 0:
            panel.set_ylabel("time / time of SDPA")
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(drawn), fontsize=9)
    figure.suptitle(f"{title} (dashed: 1.10)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return f"plot: {path}"


def all_shapes() -> list[Shape]:
    """Small ones first within a mode; decode first."""
    shapes = [
        Shape(model, mode, batch, keys)
        for model, family in FAMILIES.items()
        for mode in ("decode", "prefill")
        for keys in family.keys
        for batch in BATCHES
    ]
    return sorted(shapes, key=lambda shape: (shape.mode, shape.operations))


def default_shapes(device: str) -> list[Shape]:
    if is_cuda(device):
        return all_shapes()
    most = {"decode": 4096, "prefill": 1024}
    return [s for s in all_shapes() if s.batch <= 2 and s.keys <= most[s.mode]]


def chosen_shapes(options: argparse.Namespace) -> list[Shape]:
    if options.shapes:
        known = all_shapes()
        found = (s for p in options.shapes for s in known if fnmatch(s.name, f"*{p}*"))
        return list(dict.fromkeys(found))
    return all_shapes() if options.full else default_shapes(options.device)


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Shape]]:
    """Options with their defaults filled in, and the shapes to measure, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument(
        "--setups",
        nargs="+",
        choices=list(CONTENDERS),
        help="SDPA is always measured; default: all, on the CPU without flex",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="PATTERN",
        help='in this order, of names like "llava-1.5-7b-decode-b1-k640": "llava*b1-k640"',
    )
    parser.add_argument("--full", action="store_true", help="every shape, also on the CPU")
    parser.add_argument("--rounds", type=int, help="default: 9 on CUDA, 3 on the CPU")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of a shape; after them 3 rounds are enough"
    )
    parser.add_argument("--minutes", type=float, help="then no further shape; default: 7.5 on CUDA")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--plot", type=Path, help="draw decode's ratios, a PNG")
    options = parser.parse_args(arguments)
    cuda = is_cuda(options.device)
    options.rounds = options.rounds or (9 if cuda else 3)
    options.minutes = options.minutes or (7.5 if cuda else math.inf)
    if options.setups is None:
        options.setups = [name for name in CONTENDERS if cuda or name != "flex"]
    options.setups = [n for n in CONTENDERS if n == "SDPA" or n in options.setups]
    shapes = chosen_shapes(options)
    if not shapes or options.rounds < 1:
        parser.error("no shape has such a name, or --rounds is below 1")
    return options, shapes


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    options, shapes = parsed(arguments)
    cuda = is_cuda(options.device)
    print(json_text(machine(options.device)))
    bench = Bench(options)
    print(
        f"{options.dtype}; ours: {implementation(options.device)}; a copy moves "
        f"{bench.copy_bandwidth / 1e9:.0f} GB/s; cache {cache_bytes(options.device) / 1e6:.0f} MB",
        flush=True,
    )
    if not cuda and "flex" not in options.setups:
        bench.note("flex: left out, the CPU compiles each shape for long: --setups flex ...")
    for number, shape in enumerate(shapes):
        bench.measure(shape)
        if cuda:
            torch.cuda.empty_cache()
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json_text(bench.result(shapes), indent=1))
        print(f"{number + 1} of {len(shapes)}: {shape.name}", file=sys.stderr, flush=True)

    result = bench.result(shapes)
    print(f"\n{tables(result['rows'], options.setups)}")
    if options.plot:
        title = f"{result['machine']['device']}, {options.dtype}"
        print("\n" + plot(result["rows"], options.setups, title, options.plot))
    for note in bench.notes:
        print(f"note: {note}")
    if result["targets"]:
        print(f"\n{target_table(result['targets'])}")
    else:
        print("\ntargets: they are set for a GPU in bf16, and do not apply to this run")
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
