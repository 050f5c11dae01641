"""Where the time of a decoding step goes, and how often the host waits for the device in it.

    python benchmarks/steps.py --device cpu --out steps.json --markdown steps.md

Of greedy and each named decoder, in one answer: milliseconds per token without a profiler; then,
under torch's, what takes the most time of its own per token, operators on the host and kernels on
the device, how often each runs, and how often the host looks at a value (`WAITS`). The profiler
slows the host down, so its times of operators are shares of a step, not what they cost.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import DTYPES, is_cuda, machine
from rows import CACHES, ENTRIES, answering
from scale import SETTLING, Clock
from subjects import NAMES, Subject, ask, load
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import StoppingCriteria, StoppingCriteriaList

from sightline.json_text import json_text

# All that look at a value end in `_local_scalar_dense`, but for these others.
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
)


class Window(StoppingCriteria):
    """Profiles `count` steps of an answer after its first tokens, and stops nothing."""

    def __init__(self, first: int, count: int, device: str):
        self.first, self.last, self.seen = first, first + count, 0
        activities = [ProfilerActivity.CPU]
        if is_cuda(device):
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen += 1
        if self.seen == self.first:
            self.profile.start()
        if self.seen == self.last:
            self.profile.stop()
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)


@dataclass(frozen=True)
class Operator:
    """What ran: milliseconds of its own, and calls, both per token."""

    name: str
    on: str
    ms: float
    calls: float


def operators(profiled: Any, steps: int) -> list[Operator]:
    """Everything that ran in so many steps, the longest first."""
    found = []
    for event in profiled.key_averages():
        on_host = event.device_type == DeviceType.CPU
        microseconds = event.self_cpu_time_total if on_host else event.self_device_time_total
        place = "host" if on_host else "device"
        found.append(Operator(event.key, place, microseconds / 1000 / steps, event.count / steps))
    return sorted(found, key=lambda operator: -operator.ms)


def measured(subject: Subject, key: str, options: argparse.Namespace) -> dict[str, Any]:
    """One decoder: its steps, timed and then profiled."""
    entry = ENTRIES[key]
    decoder = entry.make(subject)
    tokens = SETTLING + options.steps + 1
    clock, window = Clock(), Window(SETTLING + 1, options.steps, options.device)

    def answer(*criteria: StoppingCriteria) -> None:
        stops = {"stopping_criteria": StoppingCriteriaList(criteria)} if criteria else {}
        answering(subject, decoder, options.cache, **entry.keywords, **stops)(tokens)

    if is_cuda(options.device):  # compiled, and the second time recorded
        answer()
        answer()
    answer(clock)
    answer(window)
    found = operators(window.profile, options.steps)
    calls = {operator.name: operator.calls for operator in found}
    return {
        "key": key,
        "decoder": entry.name,
        "ms_per_token": statistics.median(clock.steps[SETTLING:]),
        "host_ms": sum(operator.ms for operator in found if operator.on == "host"),
        "device_ms": sum(operator.ms for operator in found if operator.on == "device"),
        "waits": {name: calls[name] for name in WAITS if name in calls},
        "operators": [asdict(operator) for operator in found[: options.top]],
    }


def table(row: dict[str, Any]) -> str:
    """Markdown of one decoder."""
    waits = ", ".join(f"{name} {count:.2f}" for name, count in row["waits"].items())
    lines = [
        f"### {row['decoder']}",
        "",
        f"{row['ms_per_token']:.2f} ms per token; under the profiler {row['host_ms']:.2f} on the "
        f"host and {row['device_ms']:.2f} on the device. Waits per token: {waits or 'none'}.",
        "",
        "| what | on | ms / token | share | calls / token |",
        "|---|---|---:|---:|---:|",
    ]
    whole = {"host": row["host_ms"], "device": row["device_ms"]}
    for operator in row["operators"]:
        share = operator["ms"] / whole[operator["on"]]
        lines.append(
            f"| {operator['name'][:80]} | {operator['on']} | {operator['ms']:.3f} "
            f"| {share:.0%} | {operator['calls']:.1f} |"
        )
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=NAMES, help="default: 7b on CUDA, 0.25b elsewhere")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--cache", default="dynamic", choices=CACHES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--decoders", nargs="+", default=["vdd"], choices=list(ENTRIES))
    parser.add_argument("--steps", type=int, default=16, help="that are profiled")
    parser.add_argument("--top", type=int, default=15, help="operators in a table")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try a command")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    options = parser.parse_args(arguments)
    options.model = options.model or ("7b" if is_cuda(options.device) else "0.25b")
    options.decoders = list(dict.fromkeys(["greedy", *options.decoders]))
    if min(options.steps, options.top, options.batch) < 1:
        parser.error("--steps, --top and --batch must be 1 or more")
    if options.cache == "compiled" and not is_cuda(options.device):
        parser.error("--cache compiled: generate compiles on CUDA alone")
    if options.cache != "dynamic" and any(ENTRIES[key].dynamic_only for key in options.decoders):
        parser.error("beams and VASparse take --cache dynamic: leave them out, or the cache")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    transformers.logging.set_verbosity_error()
    model, processor = load(options.model, options.dtype, options.device, options.tiny)
    subject = ask(options.model, model, processor, options.batch)
    given = sys.argv[1:] if arguments is None else arguments
    names = ("model", "dtype", "cache", "batch", "steps")
    result: dict[str, Any] = {
        "machine": machine(options.device),
        "command": shlex.join(["python", "benchmarks/steps.py", *given]),
        "run": {name: getattr(options, name) for name in names},
        "rows": [measured(subject, key, options) for key in options.decoders],
    }
    described = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    head = f"`{result['command']}`; {described}"
    text = "\n\n".join([head, *(table(row) for row in result["rows"])]) + "\n"
    print(text)
    for path, content in (
        (options.out, json_text(result, indent=1) + "\n"),
        (options.markdown, text),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


if __name__ == "__main__":
    with torch.no_grad():
        main()
