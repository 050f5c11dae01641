"""The first minutes of a GPU: is the kernel right, is it fast, and what does a token cost.

    python benchmarks/device.py --out benchmarks/results/device
    python benchmarks/device.py --out benchmarks/results/device --only qwen long
    python benchmarks/device.py --dry-run

Runs the steps below in order of value. Each step is a process of its own with a limit on its time:
it begins nothing new after its budget and is ended 30 seconds later, so neither a slow compiler nor
a fault on the device costs the steps after it. A step writes `STEP.json` in the output folder as
results come in. `--only STEP ...` runs these steps and leaves the files of the others alone; the
steps marked "only" run no other way. Models have random weights that are drawn on the device, so
nothing is downloaded.

Every step checks results before it times anything; what fails the check is not timed. At the end
the command prints each GPU target of the README, reached or missed by how much, and exits with 1 if
a check or a step failed.

`--dry-run` walks every step with tiny shapes on a CPU, with the kernel under Triton's interpreter,
in two minutes. Its files go to `OUT/dry-run` or a temporary folder, and its numbers mean nothing.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRY_RUN = "dry-run"
DRY_RUN_SLOWER = 10  # a dry run is to end by itself, on whatever machine
GRACE = 30  # seconds from the end of a step's budget to the end of its process
RANGES = {
    "torch": "2.9 to 2.13",
    "transformers": "5.18 to 5.23",
    "triton": "3.4 to 3.9",
    "numpy": "any; a dry run with Triton 3.6 needs one below 2.4",  # for Triton's interpreter
}
TRITON = "3.9.0"  # the tests run the kernel with it; constraints.txt leaves triton to torch

DECODE = [f"llava*decode-b1-k{keys}" for keys in (640, 4096, 2048, 1024)]
GROUPED = [f"qwen*decode-b1-k{keys}" for keys in (1024, 32768, 8192, 4096)]
PREFILL = ["llava*prefill-b1-k640", "qwen*prefill-b1-k1024", "llava*prefill-b1-k2048"]
SHAPES = [
    *(pattern for pair in zip(DECODE[:2], GROUPED[:2], strict=True) for pattern in pair),
    *PREFILL,
    *(pattern for pair in zip(DECODE[2:], GROUPED[2:], strict=True) for pattern in pair),
    "llava*decode-b8-k4096",  # more than 512 MB of keys and values
    *(f"qwen*prefill-b1-k{keys}" for keys in (4096, 8192, 32768)),
]


@dataclass(frozen=True)
class Step:
    """One process.

    Args:
        name: Of the step and its file.
        seconds: Its budget.
        text: What it answers.
        script: "kernel", or the benchmark that it runs: "attention" or "decoding".
        arguments: Of that benchmark.
        is_default: Whether it runs without `--only`.
    """

    name: str
    seconds: int
    text: str
    script: str
    arguments: tuple[str, ...] = ()
    is_default: bool = True


def words(**options: str) -> tuple[str, ...]:
    """A command line's."""
    return tuple(word for name, value in options.items() for word in (f"--{name}", *value.split()))


def speed(
    models: str = "7b", batch: int = 1, tokens: int = 64, decoders: str = "", **further: str
) -> tuple[str, ...]:
    """Arguments of `decoding.py`; decoders are always timed with a dynamic cache."""
    options = {"models": models, "batch": str(batch), "tokens": str(tokens), "decoders": decoders}
    return words(**options | {"caches": "dynamic"} | further)


STEPS = (
    Step("kernel", 60, "the kernel equals its definition; graphs capture and replay", "kernel"),
    Step(
        "attention",
        120,
        "the kernel against SDPA, FlexAttention and a large copy; 7B shapes, 640 to 32k keys",
        "attention",
        words(
            setups="ours recording flex eager",
            rounds="5",
            seconds="1.5",
            shapes=" ".join(SHAPES),
        ),
    ),
    Step(
        "tokens",
        240,
        "LLaVA-1.5-7B, batch 1: decoders eager; greedy, VDD and PAI compiled",
        "decoding",
        speed(decoders="vdd vcd pai sid vasparse", compiled="vdd pai", caches="dynamic compiled"),
    ),
    Step(
        "batch",
        60,
        "LLaVA-1.5-7B, batch 16: greedy, VDD, VCD",
        "decoding",
        speed(batch=16, decoders="vdd vcd"),
    ),
    Step(
        "rows",
        240,
        "LLaVA-1.5-7B, batch 1: the other decoders",
        "decoding",
        speed(
            decoders="vdd vdd-both vdd-reusing damro icd m3id agla pai-alone vaf vasparse-sink "
            "deco dola"
        ),
        is_default=False,
    ),
    Step(
        "compiled",
        480,
        "LLaVA-1.5-7B, batch 1: the other decoders compiled",
        "decoding",
        speed(decoders="vcd damro icd m3id sid pai-alone vaf deco dola", caches="compiled"),
        is_default=False,
    ),
    Step(
        "gate",
        90,
        "LLaVA-1.5-7B, batch 16: VDD with a gate",
        "decoding",
        speed(batch=16, decoders="vdd vdd-sixth"),
        is_default=False,
    ),
    Step(
        "qwen",
        150,
        "Qwen2.5-VL-7B, batch 1: VDD, VCD, PAI, SID",
        "decoding",
        speed("qwen2.5-vl-7b", decoders="vdd vcd pai sid"),
        is_default=False,
    ),
    Step(
        "long",
        180,
        "LLaVA-1.5-7B, batch 1, 512 tokens: VDD, VCD",
        "decoding",
        speed(tokens=512, decoders="vdd vcd"),
        is_default=False,
    ),
)


# The parent: a process for each step


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step:
        steps = [step for step in STEPS if step.name in options.step]
        return max(run_step(step, options) for step in steps)
    print_versions()
    steps = [step for step in STEPS if step.name in (options.only or [step.name])]
    if not (options.only or options.dry_run):
        steps = [step for step in steps if step.is_default]
    for step in steps:
        print(f"  {step.name}: {step.seconds} s, {step.text}")
    print(f"at most {sum(step.seconds + GRACE for step in steps)} s in all", flush=True)
    groups = [[step] for step in steps]
    if options.dry_run:  # most of its time is the start of a process, and tiny shapes share no work
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        groups = [[*group] for _, group in groupby(steps, lambda step: step.script)]
    failed = [step.name for group in groups if not finished(group, options) for step in group]
    print("\n" + summary(options.out, options.dry_run))
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--out", type=Path, help="folder of the steps' files")
    parser.add_argument("--only", nargs="+", choices=names, help="these steps")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument(
        "--step", nargs="+", choices=names, help=argparse.SUPPRESS
    )  # in this process
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)  # number, of
    options = parser.parse_args(arguments)
    if options.dry_run:
        out = options.out or Path(tempfile.mkdtemp(prefix="sightline-device-"))
        options.out = out if out.name == DRY_RUN else out / DRY_RUN
        return options
    import torch

    if options.out is None:
        parser.error("--out FOLDER is needed, as in --out benchmarks/results/device")
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: --dry-run walks every step on a CPU")
    return options


def print_versions() -> None:
    """What is installed; where that is not the tested set, also the tested one and the range."""
    text = (ROOT / "constraints.txt").read_text()
    tested = dict(re.findall(r"^(torch|transformers|numpy)==(\S+)$", text, re.MULTILINE))
    for name, wanted in {**tested, "triton": TRITON}.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        same = found.split("+")[0] == wanted
        print(f"{name} {found}" + ("" if same else f" (tested: {wanted}; range: {RANGES[name]})"))


def finished(steps: Sequence[Step], options: argparse.Namespace) -> bool:
    """Runs steps in a process of their own; whether all of it went well."""
    names = [step.name for step in steps]
    seconds = sum(step.seconds for step in steps)
    print(f"\n== {', '.join(names)} ({seconds} s)", flush=True)
    began = time.monotonic()
    process = subprocess.Popen([*command(options), "--step", *names], start_new_session=True)
    slower = DRY_RUN_SLOWER if options.dry_run else 1
    try:
        code: int | None = process.wait(slower * (seconds + GRACE))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    took = f"{time.monotonic() - began:.0f} s"
    said = "ended: its time was over" if code is None else f"exit code {code}" if code else "done"
    print(f"== {', '.join(names)}: {said} after {took}", flush=True)
    return code == 0


def command(options: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(Path(__file__).resolve()), "--out", str(options.out)]
    return words + ["--dry-run"] * options.dry_run


def summary(out: Path, is_dry: bool) -> str:
    """Every GPU target: reached, missed by how much, or not measured."""
    import report
    from targets import TARGETS, verdicts

    lines: list[dict[str, Any]] = []
    kernel: list[dict[str, Any]] = []
    results = [
        json.loads(file.read_text())
        for step in STEPS
        if (file := out / f"{step.name}.json").exists()
    ]
    measured = [result for result in results if "runs" in result]
    if measured:
        joined = {"machine": measured[0]["machine"], "runs": joined_runs(measured)}
        lines = verdicts(joined, "cuda")
    known = {line["target"] for line in lines if line["measured"] is not None}
    lines = [line for line in lines if line["measured"] is not None]
    missing = [
        f"not measured: {target.text} ({', '.join(target.rows)})"
        for target in TARGETS
        if target.device == "cuda" and target.text not in known
    ]
    for result in results:
        kernel += result.get("targets", []) if "copy_gb_per_s" in result else []
    parts = ["Targets on a GPU"]
    if is_dry:
        parts = ["Targets, as a GPU's would be printed. This was a dry run: they mean nothing."]
    if kernel:
        from attention import target_table

        parts.append(target_table(kernel))
    else:
        parts.append("not measured: all targets of the kernel (attention)")
    if lines:
        parts.append(report.target_table(lines))
    return "\n\n".join([*parts, "\n".join(missing)]).rstrip()


def joined_runs(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one model, batch and length as one: rows of several steps, the first of each."""
    runs: dict[tuple, dict[str, Any]] = {}
    for result in results:
        for run in result["runs"]:
            key = (run["model"], run["dtype"], run["batch"], run["tokens"])
            joined = runs.setdefault(key, {**run, "rows": []})
            have = {(row["key"], row["cache"]) for row in joined["rows"]}
            joined["rows"] += [row for row in run["rows"] if (row["key"], row["cache"]) not in have]
    return list(runs.values())


# A step's own process


def run_step(step: Step, options: argparse.Namespace) -> int:
    print(f"-- {step.name}: {step.text}", file=sys.stderr, flush=True)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    if step.script == "kernel":
        sys.path.append(str(ROOT / "tests"))  # its cases
        import kernel_check

        if options.worker:
            number, count = options.worker
            return kernel_check.work(number, count, options.dry_run)
        worker = [*command(options), "--step", step.name, "--worker"]
        return kernel_check.main(worker, options.out / "kernel.json", step.seconds)
    arguments = [*step.arguments, "--minutes", f"{step.seconds / 60:g}"]
    arguments += ["--out", str(options.out / f"{step.name}.json")]
    if options.dry_run:
        import dry_run

        return dry_run.run(step.script, arguments)
    arguments += ["--device", "cuda"]
    if step.script == "attention":
        import attention

        return attention.main(arguments)
    import decoding

    return decoding.main([*arguments, "--dtypes", "bf16", "--views", "none"])


if __name__ == "__main__":
    sys.exit(main())
