"""Compile the attention kernels ahead of time for a GPU that this machine does not have.

    python benchmarks/compile_kernels.py --capability 9.0

Runs every case of `tests/kernel_cases.py`, and the 7B shapes of `benchmarks/attention.py` in bf16,
up to the launch: Triton specialises each kernel for the arguments of that case and compiles it to a
cubin with the assembler that Triton ships. Nothing is launched, so results are not checked. Prints
one line per kernel and exits with 1 if a case does not compile or needs more shared memory than the
GPU has. About three minutes on one core.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)  # read by triton.jit when the kernels are defined
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import kernel_cases
import torch
import triton
from kernel_cases import CASES, make, named
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from attention import OURS, Case, Run, Shape, all_shapes, ours, recording
from sightline.attention import kernel

SHARED_MEMORY = {90: 227 * 1024}  # bytes per program, by compute capability
OLDEST_SHARED_MEMORY = 99 * 1024


@contextmanager
def compiled_for(capability: int) -> Iterator[dict[str, list[Any]]]:
    """Launches become compilations; yields the compiled kernels by name."""
    found: dict[str, list[Any]] = defaultdict(list)
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **kwargs)
        known = found[self.fn.__name__]
        if not any(made is other for other in known):
            known.append(made)
        return made

    target = GPUTarget("cuda", capability, 32)
    device = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(device)
    with patch.object(JITFunction, "run", compile_only):
        yield found


def shapes() -> list[Shape]:
    """One shape of each tile size that the 7B models use."""
    wanted = {"decode": (640, 2048, 8192), "prefill": (1024, 4096)}
    return [
        shape for shape in all_shapes() if shape.batch == 1 and shape.keys in wanted[shape.mode]
    ]


def attend(case: dict[str, Any]) -> Any:
    return kernel.attend(**make(**case))


def attend_shape(shape: Shape, setup: Callable[[Case], Run]) -> Any:
    case = Case(shape, torch.bfloat16, "cpu")
    return setup(case)(*case.copy(0))


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and what to run."""
    for case in CASES:
        yield named(case), partial(attend, case)
    for shape in shapes():
        for name, setup in zip(OURS, (ours, recording), strict=True):
            yield f"{shape.name} {name}", partial(attend_shape, shape, setup)


def report(found: dict[str, list[Any]], limit: int) -> list[str]:
    """Prints a line per kernel; returns what is wrong."""
    wrong = []
    for name, kernels in sorted(found.items()):
        shared = max(each.metadata.shared for each in kernels)
        sizes = sorted(len(each.asm["cubin"]) for each in kernels)
        print(
            f"{name}: {len(kernels)} specialisations, shared memory at most {shared} bytes, "
            f"cubins of {sizes[0]} to {sizes[-1]} bytes"
        )
        if shared > limit:
            wrong.append(f"{name} needs {shared} bytes of shared memory, {limit} are there")
    return wrong


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", default="9.0", help="compute capability, 9.0: H100, H200")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cases whose name contains one")
    options = parser.parse_args(arguments)
    capability = int(options.capability.replace(".", ""))
    print(f"triton {triton.__version__}, torch {torch.__version__}, capability {capability / 10}")
    kernel_cases.DEVICE = "cpu"
    began, wrong, count = time.monotonic(), [], 0
    ours_is_the_kernel = patch("attention.attend_for", lambda device: kernel.attend)
    with compiled_for(capability) as found, ours_is_the_kernel:
        for name, run in cases():
            if options.only and not any(text in name for text in options.only):
                continue
            count += 1
            try:
                run()
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
    wrong += report(found, SHARED_MEMORY.get(capability, OLDEST_SHARED_MEMORY))
    print(f"{count} cases compiled in {time.monotonic() - began:.0f} s")
    for text in wrong:
        print(f"FAILED: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
