"""The kernel against its definition on odd shapes, in several processes; a step of `device.py`.

Most of the time goes into compiling a kernel for each case, so each worker takes every n-th case.
A worker writes one JSON line per case. After a fault on the device nothing of that process can be
trusted, so it ends there, and its other cases are reported as not run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kernel_cases
import torch
from kernel_cases import CASES, DEVICE, compare, make, named
from machine import is_cuda, machine

from sightline.attention import kernel
from sightline.json_text import json_text

WORKERS = 12
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DRY_KERNELS = 4  # the cases of a dry run


def chosen(is_dry: bool) -> list[dict[str, Any]]:
    """Cases in order of value: the dtypes of deployed models first."""
    cases = sorted(CASES, key=lambda case: DTYPES.index(case["dtype"]))
    if not is_dry:
        return cases
    small = sorted(cases, key=lambda case: case["keys"] * case["queries"] * case["heads"][0])
    decode = [case for case in small if case["queries"] == 1 and case["record"] == "all"]
    prefill = [case for case in small if case["queries"] > 1 and case["record"] == "all"]
    return (decode[: DRY_KERNELS // 2] + prefill)[:DRY_KERNELS]


def main(worker: Sequence[str], out: Path, seconds: float) -> int:
    """Runs the workers, writes what they found, and returns an exit code.

    Args:
        worker: The command of one, without its number and theirs.
        seconds: After which the workers are ended.
    """
    until = time.monotonic() + seconds - 5
    count = min(WORKERS, max(1, (os.cpu_count() or 2) - 2)) if is_cuda(DEVICE) else 1
    logs = [out.with_suffix(f".{number}.jsonl") for number in range(count)]
    running = []
    for number, log in enumerate(logs):
        with log.open("w") as file:
            arguments = [*worker, str(number), str(count)]
            running.append(subprocess.Popen(arguments, stdout=file))
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines() if line]
    for log in logs:
        log.unlink()
    found = [line for line in lines if "case" in line]
    total = next((line["cases"] for line in lines if "cases" in line), None)
    wrong = [line for line in found if line["wrong"]]
    result = {
        "machine": machine(DEVICE),
        "cases": total,
        "compared": len(found),
        "captured": sum(line["captured"] for line in found),
        "wrong": wrong,
        "results": found,
    }
    out.write_text(json_text(result, indent=1))
    print(
        f"{len(found)} of {total} cases compared with the definition, {result['captured']} of them "
        f"captured in a graph and replayed; {len(wrong)} wrong"
    )
    for line in wrong:
        print(f"FAILED: {line['case']}: {line['wrong']}")
    if len(found) != total:
        print("The other cases were not run: time was over, or a worker ended with an error.")
    return 1 if wrong or not found or any(process.returncode > 0 for process in running) else 0


@torch.no_grad()
def work(number: int, count: int, is_dry: bool) -> int:
    """Prints a JSON line for every `count`-th case, beginning with case `number`."""
    cases = chosen(is_dry)
    print(json_text({"cases": len(cases)}), flush=True)
    with kernel_cases.bf16_products():
        for case in cases[number::count]:
            began = time.monotonic()
            wrong = captured = ""
            try:
                inputs = make(**case)
                with kernel_cases.nothing_is_written():
                    compare(inputs)
                captured = replayed(inputs)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            line = {
                "case": named(case),
                "wrong": wrong or captured,
                "captured": not (wrong or captured) and is_cuda(DEVICE),
                "seconds": time.monotonic() - began,
            }
            print(json_text(line), flush=True)
            if is_lost(wrong):
                return 1
    return 0


def replayed(inputs: dict[str, Any]) -> str:
    """What is wrong with a graph of the call, replayed on another query; empty if nothing is."""
    replay, (output, recorded) = capture(lambda: kernel.attend(**inputs))
    inputs["query"].copy_(inputs["query"].flip(0).clone())
    if replay is not None:
        replay()
    else:
        output, recorded = kernel.attend(**inputs)
    expected, eager = kernel.attend(**inputs)
    pairs = [(output, expected), *zip(recorded, eager, strict=True)]
    same = all(one is other is None or torch.equal(one, other) for one, other in pairs)
    return "" if same else "a replayed graph differs from the call"


def capture(run: Callable[[], Any]) -> tuple[Callable[[], None] | None, Any]:
    """How to run it again into the same tensors, and these; None elsewhere than on CUDA."""
    if not is_cuda(DEVICE):
        return None, run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


def is_lost(wrong: str) -> bool:
    """Whether the device answers no more in this process."""
    if not wrong or not is_cuda(DEVICE):
        return False
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"the device is lost to this process: {error}", file=sys.stderr)
        return True
    return False
