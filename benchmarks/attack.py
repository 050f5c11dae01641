"""Attacks on sightline: what must hold when somebody tries to break it.

python benchmarks/attack.py [--short] [--out benchmarks/results/attack-cpu.json] [PART ...]

Each part is a module `attack_<part>.py` with a function `attack(short) -> dict` of figures, of
which `passed` says whether all held. Everything stays on this machine: servers listen on loopback
alone. Without parts all are run. The exit status is 1 where one did not pass.
"""

import argparse
import faulthandler
import importlib
import os
import time
from pathlib import Path
from typing import Any

from machine import installed, machine

from sightline.json_text import json_text

PARTS = ("visitors", "images", "runs", "settings")
SECONDS = 3600  # the longest that all parts may take; `SHORT_SECONDS` with --short
SHORT_SECONDS = 600
PACKAGES = ("gradio", "fastapi", "starlette", "uvicorn", "pillow")


def run(part: str, short: bool) -> dict[str, Any]:
    """The figures of one part; a part that breaks has not passed."""
    start = time.perf_counter()
    try:
        found = importlib.import_module(f"attack_{part}").attack(short)
    except Exception as error:
        found = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--short", action="store_true", help="a few tries of each kind, for CI")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    faulthandler.dump_traceback_later(SHORT_SECONDS if options.short else SECONDS, exit=True)
    parts = {part: run(part, options.short) for part in options.parts or PARTS}
    versions = {name: installed(name) for name in PACKAGES}
    head = {**machine("cpu"), "cores": os.cpu_count(), **versions, "short": options.short}
    result = {"machine": head, "parts": parts, "passed": all(p["passed"] for p in parts.values())}
    text = json_text(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
