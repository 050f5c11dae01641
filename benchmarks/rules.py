"""What the rules cost per token, as they are and under `torch.compile`: whether fusing them pays.

    python benchmarks/rules.py --device cpu

A call is what stands between the model's logits `[2 * rows, vocabulary]` and the token: the cast to
float32, the rule over the expert's plausible tokens, and the best token. "greedy" is the cast and
the best token alone, of half as many rows: what plain decoding does. A time is that of many calls
in a row over their number, on CUDA launches included; the median of rounds in which all rows run
one after another. The floor is the logits' bytes, read once, over the bandwidth of a large copy.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import DTYPES, copy_bandwidth, machine, synchronise
from report import spelled
from timing import spread

from sightline.json_text import json_text
from sightline.logits.growing import GrowingGuidance
from sightline.logits.rules import Additive, Contrastive, Guidance, Plausibility, State

RULES = {
    "greedy": Plausibility(beta=0),
    "Contrastive": Contrastive(1.0, 0.1),
    "Additive": Additive(2.0, 0.5),
    "Guidance": Guidance(1.1, 0.1),
    "GrowingGuidance": GrowingGuidance(0.02, 0.1),
}
MILLISECONDS = 50  # that a round of one row takes, about


@dataclass
class Cost:
    """One rule at one shape; `rounds`: microseconds per call."""

    rule: str
    vocabulary: int
    rows: int
    how: str
    compiling_s: float = 0.0
    floor_us: float = 0.0
    rounds: list[float] = field(default_factory=list)


def tokens(rule: Any, branches: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From logits `[branches * R, V]` to tokens `[R]`."""
    state = State(step=5)

    def chosen(logits: torch.Tensor) -> torch.Tensor:
        return rule(logits.float().chunk(branches), state).argmax(dim=-1)

    return chosen


def per_call(call: Callable[[], Any], calls: int, device: str) -> float:
    """Microseconds."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return 1e6 * (time.perf_counter() - start) / calls


def measured(
    vocabulary: int, rows: int, options: argparse.Namespace, bytes_per_second: float
) -> list[Cost]:
    """Every rule at one shape, eager and compiled."""
    torch.compiler.reset()  # all rules are one function to the compiler, which keeps eight
    made: list[tuple[Cost, Callable[[], Any], int]] = []
    for name, rule in RULES.items():
        branches = 2 if rule.needs.others else 1
        logits = torch.randn(branches * rows, vocabulary, device=options.device)
        logits = logits.to(DTYPES[options.dtype])
        chosen = tokens(rule, branches)
        compiled = torch.compile(chosen, dynamic=False)
        for how, function in (("eager", chosen), ("compiled", compiled)):
            cost = Cost(name, vocabulary, rows, how)
            cost.floor_us = 1e6 * logits.nbytes / bytes_per_second

            def call(function: Any = function, logits: torch.Tensor = logits) -> Any:
                return function(logits)

            cost.compiling_s = per_call(call, 1, options.device) / 1e6
            once = min(per_call(call, 3, options.device) for _ in range(2))
            made.append((cost, call, max(1, round(1000 * MILLISECONDS / once))))
    for _ in range(options.rounds):
        for cost, call, calls in made:
            cost.rounds.append(per_call(call, calls, options.device))
    return [cost for cost, _, _ in made]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| rule | vocabulary | rows | how | microseconds | floor | first call, s |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for cost in found:
        lines.append(
            f"| {cost['rule']} | {cost['vocabulary']} | {cost['rows']} | {cost['how']} "
            f"| {spelled(cost['us'], 0)} | {cost['floor_us']:.0f} | {cost['compiling_s']:.2f} |"
        )
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES), help="of the logits")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32064, 152064])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    options = parser.parse_args(arguments)
    if min(*options.vocabulary, *options.rows, options.rounds) < 1:
        parser.error("--vocabulary, --rows and --rounds must be 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    bytes_per_second = copy_bandwidth(options.device)
    given = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {
        "machine": {**machine(options.device), "copy_gb_per_s": bytes_per_second / 1e9},
        "command": shlex.join(["python", "benchmarks/rules.py", *given]),
        "dtype": options.dtype,
        "rows": [],
    }
    print(json_text(result["machine"]))
    for vocabulary in options.vocabulary:
        for rows in options.rows:
            found = measured(vocabulary, rows, options, bytes_per_second)
            result["rows"] += [
                {**asdict(cost), "us": asdict(spread(cost.rounds))} for cost in found
            ]
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json_text(result, indent=1) + "\n")
    print("\n" + table(result["rows"]))


if __name__ == "__main__":
    with torch.no_grad():
        main()
