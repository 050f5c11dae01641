"""What a token costs as answers, contexts, batches and ensembles grow, with the bound drawn in.

    python benchmarks/scale.py --device cpu --plot scale.png

Four panels: milliseconds per token over the tokens answered so far, over the context (images in
a prompt), over the batch, and over the number of branches (VDD with more image-free amateurs).
Greedy and VDD are in all of them, PAI in that of the context.

A time is the median of the steps up to that many tokens (the last 16 of them), or of all steps of
a short answer but its first two; then the median over rounds, in which all decoders of a point run
one after another. The bound is what must be read: the text model's weights once, and the keys and
values of each branch's own tokens (not of its padding), over the bandwidth of a large copy. On a
CPU arithmetic is not free beside reading, so a batch leaves this bound there.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import DTYPES, copy_bandwidth, is_cuda, machine
from rows import CACHES, answering
from subjects import NAMES, UNKNOWN, Subject, ask, load
from timing import spread
from transformers import StoppingCriteria, StoppingCriteriaList

from sightline import PAI, VDD, NoImage, Recipe, UnknownImage
from sightline.json_text import json_text

WINDOW = 16
SETTLING = 2  # steps of an answer that are not counted
PANELS = {
    "tokens": "tokens answered so far",
    "context": "image tokens in the prompt",
    "batch": "batch",
    "branches": "branches",
}


@dataclass(frozen=True)
class Decoding:
    """A decoder, and how many image-free branches it has beside the expert."""

    name: str
    decoder: Any
    blind: int = 0

    def bound(self, subject: Subject, answered: int, bytes_per_second: float) -> float:
        """Milliseconds of reading what a token after `answered` others cannot do without."""
        expert = subject.prompt + answered
        cached = expert + self.blind * (expert - subject.image_tokens)
        keys = subject.batch * cached * subject.key_bytes
        return 1000 * (subject.weight_bytes + keys) / bytes_per_second


def branching(count: int) -> Decoding:
    """VDD of so many branches: the expert, then without an image, or with unknown words for it."""
    contrasts = (NoImage(), *(UnknownImage((UNKNOWN,) * n) for n in range(1, count - 1)))
    if count == 1:
        return Decoding("VDD", None)
    return Decoding("VDD", Recipe(contrasts=contrasts, rule=VDD().recipe().rule), count - 1)


GREEDY, BLIND = Decoding("greedy", None), Decoding("VDD", VDD(), 1)
LOOKING = Decoding("PAI", PAI(), 1)


@dataclass(frozen=True)
class Point:
    """Decoders that are timed in turn.

    Args:
        panel: Key of `PANELS`.
        decodings: What is timed.
        batch, images: Of the prompts.
        marks: Tokens answered at which steps are read; none: all of them, of a short answer.
    """

    panel: str
    decodings: tuple[Decoding, ...]
    batch: int = 1
    images: int = 1
    marks: tuple[int, ...] = ()


class Clock(StoppingCriteria):
    """Notes the time of every token, and stops nothing.

    The loop itself waits for the device at every token, so no wait is added.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)

    @property
    def steps(self) -> list[float]:
        """Milliseconds from each token to the next: one fewer than tokens."""
        pairs = zip(self.times[1:], self.times[:-1], strict=True)
        return [1000 * (later - earlier) for later, earlier in pairs]


def steps(subject: Subject, decoding: Decoding, cache: str, tokens: int) -> list[float]:
    """Milliseconds of each token of an answer after its first."""
    clock = Clock()
    criteria = StoppingCriteriaList([clock])
    answering(subject, decoding.decoder, cache, stopping_criteria=criteria)(tokens)
    return clock.steps


@dataclass
class Found:
    """One decoder at one place of a panel; `rounds`: milliseconds per token."""

    panel: str
    decoder: str
    x: int
    bound_ms: float
    rounds: list[float] = field(default_factory=list)


def timed(
    point: Point, subject: Subject, options: argparse.Namespace, bytes_per_second: float
) -> list[Found]:
    """Everything at one point."""
    length = max(point.marks, default=options.answer)
    rows: dict[tuple[str, int], Found] = {}
    if is_cuda(options.device):  # compiled, and the second time recorded, at full length
        for decoding in point.decodings * 2:
            steps(subject, decoding, options.cache, length)
    for _ in range(options.rounds):
        for decoding in point.decodings:
            found = steps(subject, decoding, options.cache, length)
            for mark in point.marks or (length,):
                bound = decoding.bound(subject, mark, bytes_per_second)
                x = place(point.panel, subject, decoding, mark)
                row = Found(point.panel, decoding.name, x, bound)
                row = rows.setdefault((decoding.name, mark), row)
                row.rounds.append(at(found, mark, bool(point.marks)))
    return list(rows.values())


def place(panel: str, subject: Subject, decoding: Decoding, answered: int) -> int:
    """Where in a panel it is drawn."""
    return {
        "tokens": answered,
        "context": subject.image_tokens,
        "batch": subject.batch,
        "branches": 1 + decoding.blind,
    }[panel]


def at(found: Sequence[float], mark: int, windowed: bool) -> float:
    """The median step of those up to a mark, or of all that are counted."""
    first = max(SETTLING, mark - 1 - WINDOW) if windowed else SETTLING
    return statistics.median(found[first : mark - 1])


def points(options: argparse.Namespace) -> Iterator[Point]:
    both = (GREEDY, BLIND)
    if "tokens" in options.panels:
        yield Point("tokens", both, marks=tuple(options.tokens))
    if "context" in options.panels:
        for count in options.images:
            yield Point("context", (*both, LOOKING), images=count)
    if "batch" in options.panels:
        for batch in options.batch:
            yield Point("batch", both, batch=batch)
    if "branches" in options.panels:
        for count in options.branches:
            yield Point("branches", (branching(count),))


def described(found: Found) -> dict[str, Any]:
    return {**asdict(found), "ms": asdict(spread(found.rounds))}


def plot(result: dict[str, Any], path: Path) -> str:
    """Four panels: lines are medians, bars the lowest and highest round, dashed the bound."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        return f"no plot: {error}"
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    names = list(dict.fromkeys(point["decoder"] for point in result["points"]))
    drawn: dict[str, Any] = {}
    for panel, (key, label) in zip(panels.flat, PANELS.items(), strict=True):
        for number, name in enumerate(names):
            line = [p for p in result["points"] if (p["panel"], p["decoder"]) == (key, name)]
            if line:
                drawn[name] = draw(panel, sorted(line, key=lambda p: p["x"]), f"C{number}")
        panel.set_xlabel(label, fontsize=9)
        panel.set_xticks(sorted({p["x"] for p in result["points"] if p["panel"] == key}))
        panel.set_ylabel("ms / token", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.2)
        panel.tick_params(labelsize=8)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(drawn), fontsize=9)
    run = result["run"]
    figure.suptitle(
        f"{run['model']}, {run['dtype']}, {run['cache']} cache, {result['machine']['device']} "
        "(dashed: bytes of weights and cache over copy bandwidth)",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"plot: {path}"


def draw(panel: Any, line: Sequence[dict[str, Any]], color: str) -> Any:
    x = [point["x"] for point in line]
    middle = [point["ms"]["median"] for point in line]
    reach = [
        [point["ms"]["median"] - point["ms"]["low"] for point in line],
        [point["ms"]["high"] - point["ms"]["median"] for point in line],
    ]
    panel.plot(x, [point["bound_ms"] for point in line], color=color, linestyle="--", linewidth=1)
    return panel.errorbar(
        x, middle, yerr=reach, color=color, marker="o", markersize=3, capsize=2, linewidth=1.5
    )


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| panel | decoder | at | ms / token | bound, ms | times the bound |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for point in result["points"]:
        ms = point["ms"]
        lines.append(
            f"| {PANELS[point['panel']]} | {point['decoder']} | {point['x']} "
            f"| {ms['median']:.2f} ({ms['low']:.2f} to {ms['high']:.2f}) "
            f"| {point['bound_ms']:.2f} | {ms['median'] / point['bound_ms']:.2f} |"
        )
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=NAMES, help="default: 7b on CUDA, 0.25b elsewhere")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--cache", default="dynamic", choices=CACHES)
    parser.add_argument("--panels", nargs="+", default=list(PANELS), choices=list(PANELS))
    parser.add_argument("--tokens", help="default: 64 512 2048, on the CPU 64 256 768", **whole)
    parser.add_argument(
        "--images", help="in a prompt; default: 1 4 14 28 56, on the CPU 1 2 4 8 14", **whole
    )
    parser.add_argument("--batch", default=[1, 2, 4, 8, 16], **whole)
    parser.add_argument("--branches", default=[1, 2, 3, 4], **whole)
    parser.add_argument("--answer", type=int, default=19, help="tokens where they do not grow")
    parser.add_argument("--rounds", type=int, help="default: 5 on CUDA, 2 elsewhere")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try a command")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--plot", type=Path, help="draw the panels, a PNG")
    options = parser.parse_args(arguments)
    cuda = is_cuda(options.device)
    options.model = options.model or ("7b" if cuda else "0.25b")
    options.tokens = options.tokens or ([64, 512, 2048] if cuda else [64, 256, 768])
    options.images = options.images or ([1, 4, 14, 28, 56] if cuda else [1, 2, 4, 8, 14])
    options.rounds = options.rounds or (5 if cuda else 2)
    if min(options.answer, *options.tokens) < SETTLING + 2:
        parser.error(f"--answer and --tokens must be {SETTLING + 2} or more: of the first nothing")
    if min(*options.images, *options.batch, *options.branches, options.rounds) < 1:
        parser.error("--images, --batch, --branches and --rounds must be 1 or more")
    if options.cache == "compiled" and not cuda:
        parser.error("--cache compiled: generate compiles on CUDA alone")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    transformers.logging.set_verbosity_error()
    bytes_per_second = copy_bandwidth(options.device)
    model, processor = load(options.model, options.dtype, options.device, options.tiny)
    asked: Callable[[int, int], Subject] = cache(
        lambda batch, images: ask(options.model, model, processor, batch, images)
    )
    given = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {
        "machine": {**machine(options.device), "copy_gb_per_s": bytes_per_second / 1e9},
        "command": shlex.join(["python", "benchmarks/scale.py", *given]),
        "run": {name: getattr(options, name) for name in ("model", "dtype", "cache", "rounds")},
        "points": [],
    }
    print(json_text(result["machine"]))
    for point in points(options):
        subject = asked(point.batch, point.images)
        found = [described(row) for row in timed(point, subject, options, bytes_per_second)]
        result["points"] += found
        print(f"{point.panel}: {found[-1]['x']}", file=sys.stderr, flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json_text(result, indent=1))
    print("\n" + table(result))
    if options.plot:
        print("\n" + plot(result, options.plot))


if __name__ == "__main__":
    with torch.no_grad():
        main()
