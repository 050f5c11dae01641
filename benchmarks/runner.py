"""What the runner of `sightline.evaluation` adds to the time of `generate`.

    python benchmarks/runner.py --threads 1

1,000 presence questions of the lab, in batches of 16. In each round the same batches are answered
twice: by `generate` alone, on inputs that were prepared before, and by the runner's loop, which
draws the images, makes the inputs, answers, decodes, and writes each answer down. The overhead is
the loop's time over that of `generate` alone, in the median round.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine, synchronise

from sightline.evaluation.asking import ModelRunner, Preparation, Prepared, Source
from sightline.evaluation.batches import cut
from sightline.evaluation.lab import LabBenchmark
from sightline.evaluation.runner import Turn, collect, turns
from sightline.evaluation.setups import Setup, parse_contenders
from sightline.json_text import json_text

LISTS = (("greedy",), ("greedy", "vcd", "vdd", "pai"))
LIMIT = 0.03


class Questions(LabBenchmark):
    """The first presence questions of the lab."""

    tasks = LabBenchmark.tasks[:1]

    def __init__(self, count: int):
        super().__init__(scenes=count // 4)
        self.items = self.items[:count]


def alone(model_runner: ModelRunner, plan: list[Turn], prepared: list[Prepared]) -> float:
    """Seconds of `generate` and nothing else."""
    inputs = [model_runner.tensors(batch.inputs) for batch in prepared]
    task = plan[0].batch.task
    device = model_runner.model.device.type
    synchronise(device)
    started = time.perf_counter()
    for turn, batch, tensors in zip(plan, prepared, inputs, strict=True):
        for setup in turn.setups:
            model_runner.generate(setup, batch, tensors, max_new_tokens=task.max_new_tokens)
    synchronise(device)
    return time.perf_counter() - started


def in_the_runner(
    model_runner: ModelRunner, preparation: Preparation, plan: list[Turn]
) -> tuple[float, float]:
    """Seconds of the runner's loop, and of `generate` within it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        answers = collect(model_runner, preparation, plan, Path(folder) / "answers.jsonl", {})
        seconds = time.perf_counter() - started
    batches = {(a.decoder, a.batch): a.ms for a in answers.values()}
    return seconds, sum(batches.values()) / 1000


def measure(
    model_runner: ModelRunner, questions: Questions, setups: list[Setup], size: int, rounds: int
) -> dict[str, Any]:
    plan = turns(cut(questions, model_runner.processor.tokenizer, size, seed=0), setups)
    preparation = Preparation(questions, model_runner.processor, keeps_images=False)
    prepared = [preparation(turn.batch) for turn in plan]
    alone(model_runner, plan[:2], prepared[:2])
    seconds: dict[str, list[float]] = {"alone": [], "runner": [], "generate": []}
    for _ in range(rounds):
        seconds["alone"].append(alone(model_runner, plan, prepared))
        whole, inside = in_the_runner(model_runner, preparation, plan)
        seconds["runner"].append(whole)
        seconds["generate"].append(inside)
    return {
        "decoders": [setup.label for setup in setups],
        "seconds": seconds,
        "overhead": over(seconds["runner"], seconds["alone"]),
        "outside_generate": over(seconds["runner"], seconds["generate"]),
    }


def over(times: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, base, strict=True)) - 1


def row(found: dict[str, Any]) -> str:
    reached = "reached" if found["overhead"] <= LIMIT else "NOT reached"
    middle = {name: statistics.median(times) for name, times in found["seconds"].items()}
    return (
        f"| {', '.join(found['decoders'])} | {middle['alone']:.2f} | {middle['runner']:.2f} "
        f"| {found['overhead']:+.1%} | {LIMIT:.0%}: {reached} | {found['outside_generate']:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; default: one per core")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON of everything measured")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    source = Source(device=options.device)
    model_runner = ModelRunner(source.model, source.processor, temperature=1.0, versions={})
    questions = Questions(options.questions)
    lines = [
        "| decoders | generate alone, s | runner, s | overhead | limit | outside generate |",
        "|---|---:|---:|---:|---|---:|",
    ]
    found = []
    for names in LISTS:
        setups, _ = parse_contenders(names, source.processor)
        found.append(measure(model_runner, questions, setups, options.batch_size, options.rounds))
        lines.append(row(found[-1]))
    described = machine(options.device)
    print("\n".join(lines))
    print(json_text(described))
    if options.out:
        content = {"machine": described, "options": vars(options) | {"out": None}, "rows": found}
        options.out.write_text(json_text(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
