"""Kills runs of `sightline evaluate lab` at random moments; each is continued until it ends.

    python benchmarks/attack_runs.py [--short]

One and two processes, SIGKILL and SIGTERM, to the process that was started or to any of its run.
After a kill no process of the run may be left, and the answers of each run must be those of one
that nobody killed, but for times. Moments and targets are drawn from a seed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from sightline.evaluation.answers import MEASURED
from sightline.json_text import json_text

KINDS = tuple((count, number) for number in ("SIGKILL", "SIGTERM") for count in (1, 2))
KILLS = {False: 100, True: 3}
KILLS_OF_A_RUN = 8
SCENES = {False: 12, True: 1}
LATEST = {False: 1.0, True: 0.6}  # moment of a kill, in times of an undisturbed run
PATIENCE = 20.0  # seconds in which all processes of a killed run must end
LONGEST = 600.0  # seconds of a start that is not killed
MARK = "SIGHTLINE_ATTACK"  # in the environment of a run's processes, so that none is overlooked


def start(out: Path, processes: int, scenes: int) -> subprocess.Popen[bytes]:
    """Begins or continues the run of a folder."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        launch += ["--num_processes", str(processes), "--main_process_port", "0"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    asked = ["lab", "--scenes", str(scenes), "--batch-size", "4", "--threads", "1"]
    asked += ["--decoder", "vdd", "--decoder", "vdd+sample", "--no-controls", "--out", str(out)]
    if (out / "run.json").exists():
        asked.append("--resume")
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: str(out)}
    return subprocess.Popen(
        [*launch, "-m", "sightline.evaluation", *asked],
        env={**os.environ, **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def members(out: Path) -> list[int]:
    """The living processes of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            is_one = process.environ().get(MARK) == str(out)
            if is_one and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def left_behind(out: Path) -> int:
    """How many processes outlive a run that was killed, or has ended."""
    until = time.monotonic() + PATIENCE
    while (left := members(out)) and time.monotonic() < until:
        time.sleep(0.1)
    for number in left:
        os.kill(number, signal.SIGKILL)
    return len(left)


def killed(process: subprocess.Popen[bytes], out: Path, number: str, draw: random.Random) -> str:
    """One signal to a process of a run: to the one that was started, or to any; says to which."""
    target = draw.choice([process.pid, draw.choice(members(out) or [process.pid])])
    try:
        os.kill(target, getattr(signal, number))
    except ProcessLookupError:
        process.send_signal(getattr(signal, number))
    process.wait(LONGEST)
    return "the first process" if target == process.pid else "another process"


def answers(out: Path) -> list[dict[str, Any]]:
    """The answers of a run, without times and memory."""
    file = out / "answers.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def attack(short: bool) -> dict[str, Any]:
    """Figures by name; `passed` says whether all of them are as they must be."""
    draw, kills, figures = random.Random(0), Counter[str](), Counter[str]()
    after: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sightline-") as name:
        folder, scenes, began = Path(name), SCENES[short], time.monotonic()
        start(folder / "undisturbed", 1, scenes).wait(LONGEST)
        wanted, seconds = answers(folder / "undisturbed"), time.monotonic() - began
        while kills.total() < KILLS[short]:
            figures["runs"] += 1
            out, in_this_run = folder / f"run-{figures['runs']}", 0
            while True:
                count, number = KINDS[kills.total() % len(KINDS)]
                is_last = kills.total() == KILLS[short] or in_this_run == KILLS_OF_A_RUN
                process = start(out, 1 if is_last and short else count, scenes)
                moment = draw.uniform(0, LATEST[short] * seconds)
                try:
                    process.wait(LONGEST if is_last else moment)
                    figures["errors"] += process.returncode != 0
                    break
                except subprocess.TimeoutExpired:
                    who = killed(process, out, number, draw)
                    kills[f"{number}, processes: {count}"] += 1
                    in_this_run += 1
                    if left := left_behind(out):
                        figures["left"] += left
                        after.append(f"{number} of {who} of {count} after {moment:.1f} s: {left}")
            figures["left"] += left_behind(out)
            figures["different"] += answers(out) != wanted
    return {
        "passed": bool(wanted) and not any(figures[n] for n in ("errors", "left", "different")),
        "kills": dict(kills),
        "answers of a run": len(wanted),
        "runs": figures["runs"],
        "runs that ended in an error": figures["errors"],
        "runs with other answers": figures["different"],
        "processes left": figures["left"],
        "left after": after,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="three kills")
    found = attack(parser.parse_args().short)
    print(json_text(found, indent=1))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
