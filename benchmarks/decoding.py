"""Speed and memory of every decoder against plain greedy decoding, in one interleaved run.

    python benchmarks/decoding.py --device cpu

Every model of `subjects.py` that is named, in every dtype, batch and length of answer: a row for
plain greedy decoding, three beams, every decoder, VDD and VCD as published code does them, two
forwards in turn, and `mitigv`'s VCD where that package is installed. Decoders that look or ask
again are measured as whole answers besides, see `views.py`: `--views only` measures nothing else,
`--views none` leaves it out. What runs are to reach is in `targets.py`, and is printed last.

A row is the time to the first token; the time of a later one, that is of the whole answer without
its first token over the tokens that are left; and the bytes of all tensors at the peak of an
answer, weights included. All rows of a round run one after another, and a ratio is of one round,
to greedy with the same cache, so drift cancels. Answers end where they are to: no token ends one.

Caches: "dynamic"; "static", not compiled; and on CUDA "compiled", static and as `generate` then
compiles it, which leaves edits that grow with the answer eager. Decoders that take keys from the
cache need a dynamic one, and so do beams here. On the CPU static rows are measured for greedy, VDD
and VCD alone. VASparse first takes keys when `every` (32) tokens are answered: with fewer
`--tokens` a row has its other parts only.

The exact gate leaves VDD's amateur behind where one token alone is plausible: how often that is
with the lab's model is printed. With random weights it is hardly ever, so "exact gate" is its worst
case there, and a gate that opens at one token in six stands for a trained model.

`--out` and `--markdown` are written anew whenever a batch and length is measured, so little is lost
when a run is stopped; the plot comes last. `report.py` makes tables and a plot of several files.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
import torch
import transformers
import views
from machine import DTYPES, copy_bandwidth, is_cuda, machine
from rows import CACHES, ENTRIES, default_caches, setups
from subjects import NAMES, Subject, ask, load
from targets import verdicts
from timing import measure

from sightline.chat import prompt_inputs
from sightline.decoders import VDD
from sightline.json_text import json_text
from sightline.lab import IMAGES
from sightline.lab.dialogue import DESCRIBE
from sightline.logits.gates import PlausibilityGate


def measured(
    subject: Subject,
    run: dict[str, Any],
    options: argparse.Namespace,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Writes the rows of one batch and length down; compiled ones anew as each is compiled."""
    if is_cuda(options.device):
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = 64  # a row each; from the limit on none is compiled
    rows, notes = setups(subject, options.decoders, options.caches, options.device)
    chosen = {*(options.compiled or options.decoders), "greedy"}
    compiled = [row for row in rows if row.cache == "compiled" and row.key in chosen]
    eager = [row for row in rows if row.cache != "compiled"]
    described = {
        **run,
        "prompt": subject.prompt,
        "image_tokens": subject.image_tokens,
        "parameters": subject.parameters,
        "model_bytes": sum(weights.nbytes for weights in subject.model.parameters()),
        "weight_bytes": subject.weight_bytes,
        "head_bytes": subject.head_bytes,
        "key_bytes": subject.key_bytes,
    }
    late: dict[bool, list[str]] = {}  # of eager rows, and of the latest compiled ones
    for group in ([eager] if eager else []) + [compiled[: n + 1] for n in range(len(compiled))]:
        for row in group:
            row.first.clear()
            row.per_token.clear()
        late[group is eager] = measure(
            group, run["tokens"], options.rounds, options.device, options.until
        )
        greedy = {row.cache: row for row in rows if row.key == "greedy"}
        done = [row for row in (*eager, *compiled) if row.first and greedy[row.cache].first]
        write(
            {
                **described,
                "notes": [*notes, *(note for said in late.values() for note in said)],
                "failures": [f"{row.name} ({row.cache}): {row.wrong}" for row in rows if row.wrong],
                "rows": [report.describe(row, greedy[row.cache], described) for row in done],
            }
        )


def looked_twice(subject: Subject, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = views.views(subject, options.answer)
    views.measure(rows, options.rounds, options.device)
    return views.summarise(rows)


def alone(subject: Subject) -> float:
    """Share of the tokens said of the shipped images at which one token alone is plausible."""
    counts = []
    for image in sorted(IMAGES.glob("*.png")):
        out = subject.model.generate(
            **prompt_inputs(subject.model, subject.processor, image, DESCRIBE[0]),
            custom_generate=VDD(),
            max_new_tokens=64,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rule = VDD().recipe().rule
        counts += [
            not PlausibilityGate().opens(logits.float(), rule).any() for logits in out.logits
        ]
    return sum(counts) / len(counts)


def runs(options: argparse.Namespace, write: Any) -> None:
    """Everything that was asked for, run by run."""
    for name in options.models:
        for dtype in options.dtypes:
            model, processor = load(name, dtype, options.device, options.tiny)
            if options.views != "only":
                for batch in options.batch:
                    subject = ask(name, model, processor, batch)
                    for tokens in options.tokens:
                        run = {"model": name, "dtype": dtype, "batch": batch, "tokens": tokens}
                        measured(subject, run, options, write)
            if options.views != "none":
                subject = ask(name, model, processor)
                run = {"model": name, "dtype": dtype, "batch": 1, "tokens": options.answer}
                if subject.trained:
                    share = f"{alone(subject):.0%} of a caption's tokens"
                    run["notes"] = [f"One token alone is plausible at {share}."]
                write({**run, "views": looked_twice(subject, options)})


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=["0.25b", "lab"], choices=NAMES)
    parser.add_argument(
        "--decoders",
        nargs="+",
        default=list(ENTRIES),
        choices=list(ENTRIES),
        help="default: all; greedy is always measured, vdd and vcd also in turn",
    )
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="prompts, every number")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[17], help="of a timed answer, every length"
    )
    parser.add_argument(
        "--caches", nargs="+", choices=CACHES, help="default: all that the device has"
    )
    parser.add_argument(
        "--compiled", nargs="+", choices=list(ENTRIES), help="compiled rows; default: --decoders"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="then no further row or round is begun"
    )
    parser.add_argument("--views", default="too", choices=["too", "only", "none"])
    parser.add_argument("--answer", type=int, default=32, help="tokens of a whole answer")
    parser.add_argument("--tiny", action="store_true", help="small models, to try a command")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument("--plot", type=Path, help="draw time per token, a PNG")
    options = parser.parse_args(arguments)
    if min(options.tokens) < 2 or options.rounds < 1 or min(options.batch) < 1:
        parser.error("--tokens must be 2 or more, --rounds and --batch 1 or more")
    options.caches = options.caches or default_caches(options.device)
    options.until = time.monotonic() + 60 * options.minutes
    if "compiled" in options.caches and not (is_cuda(options.device) or options.tiny):
        parser.error("--caches compiled: generate compiles on CUDA alone, leave it out elsewhere")
    options.decoders = [key for key in ENTRIES if key == "greedy" or key in options.decoders]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    transformers.logging.set_verbosity_error()
    found = {"copy_gb_per_s": copy_bandwidth(options.device) / 1e9}
    given = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {
        "machine": {**machine(options.device), **found},
        "command": shlex.join(["python", "benchmarks/decoding.py", *given]),
        "runs": [],
    }
    print(json_text(result["machine"]))

    def write(run: dict[str, Any]) -> None:
        """Also in the place of what was written of this run before."""
        result["runs"] = [other for other in result["runs"] if not is_same(run, other)]
        result["runs"].append(run)
        result["targets"] = verdicts(result)
        print("\n" + report.section(run), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json_text(result, indent=1))
        if options.markdown:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            options.markdown.write_text(report.markdown(result))

    runs(options, write)
    print("\n" + report.targets(result))
    if options.plot:
        print("\n" + report.plot([result], options.plot))
    failures = [failure for run in result["runs"] for failure in run.get("failures", [])]
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs measure the same: whole answers, or one model, dtype, batch and length."""
    names = ("model", "dtype", "batch", "tokens")
    return ("rows" in one) == ("rows" in other) and all(one[n] == other[n] for n in names)


if __name__ == "__main__":
    sys.exit(main())
