"""What a run writes down of itself: what its answers depend on, and where it began."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import sightline
from sightline.chat import input_device
from sightline.evaluation.identity import identity
from sightline.evaluation.setups import Setup

PACKAGES = (
    *("torch", "transformers", "numpy"),
    *("tokenizers", "pillow", "jinja2", "torchvision", "triton"),
)
"""What turns images and words into inputs, and inputs into logits, where it is installed."""


def versions() -> dict[str, str]:
    """Of sightline and of `PACKAGES`, those that are installed."""
    found = {"sightline": sightline.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def header(
    benchmark: Any,
    run: Any,
    source: Any,
    setups: Sequence[Setup],
    packages: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """What is written to `run.json`; answers of one file agree in all that is "fixed"."""
    template = run.chat_template_kwargs
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(input_device(source.model)),
        "fixed": {
            "benchmark": benchmark.name,
            "model": source.name,
            **identity(source.model, source.processor),
            "device": input_device(source.model).type,
            "dtype": str(source.model.dtype).removeprefix("torch."),
            "batch_size": run.batch_size,
            "seed": run.seed,
            "temperature": run.temperature,
            **({"template_arguments": dict(template)} if template else {}),
            "decoders": {c.label: c.settings for c in setups},
            "versions": dict(packages),
            "benchmark_settings": benchmark.fixed(),
        },
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Where the run began."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's model, where the system tells it, else its kind."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def next_folder(name: str, parent: Path = Path("runs")) -> Path:
    """`runs/<name>-<n>` with the first n that is free."""
    taken = {path.name for path in parent.glob(f"{name}-*")}
    numbered = (f"{name}-{n}" for n in range(1, len(taken) + 2))
    return next(parent / folder for folder in numbered if folder not in taken)
