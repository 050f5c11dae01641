"""What the benchmarks share: which machine they ran on, its bandwidth, and memory at its peak."""

import ctypes
import math
import platform
import statistics
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

import sightline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if is_cuda(device) else cpu_name()
    described = {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sightline": sightline.__version__,
        "date": date.today().isoformat(),
    }
    if is_cuda(device):
        described |= {"cuda": torch.version.cuda, "triton": installed("triton")}
    return described


def is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def synchronise(device: str) -> None:
    if is_cuda(device):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """Bytes at the peak since `reset_peak`; on the CPU the whole process, NaN where not known."""
    if is_cuda(device):
        return float(torch.cuda.max_memory_allocated())
    return process_memory("VmHWM")


def in_use(device: str) -> float:
    """Bytes, counted as `peak` counts them."""
    return float(torch.cuda.memory_allocated()) if is_cuda(device) else process_memory("VmRSS")


def free_memory(device: str) -> float:
    """Bytes that may still be taken; infinite where not known."""
    if is_cuda(device):
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return float(torch.cuda.mem_get_info()[0] + cached)
    info = Path("/proc/meminfo")
    if not info.exists():
        return math.inf
    return 1024.0 * int(info.read_text().split("MemAvailable:")[1].split()[0])


def process_memory(name: str) -> float:
    if platform.system() != "Linux":
        return math.nan
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(f"{name}:")[1].split()[0])


def cache_bytes(device: str) -> int:
    """Of the largest cache: what inputs must exceed to come from memory."""
    if is_cuda(device):
        return torch.cuda.get_device_properties(device).L2_cache_size
    largest = 2**25
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        largest = max(largest, 1024 * int(size.read_text().strip().removesuffix("K")))
    return largest


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, read and written."""
    size = 2**31 if is_cuda(device) else 2**28
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(20 if is_cuda(device) else 5):
        synchronise(device)
        if is_cuda(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - began)
    return 2 * size / statistics.median(seconds[1:])
