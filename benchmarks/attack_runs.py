"""Kills `sightline evaluate lab` at random moments, and holds what it continues to an undisturbed run.

    python benchmarks/attack_runs.py [--short]

One and two processes, SIGKILL and SIGTERM. After each kill no process of the run may be left, and
the run is continued until it ends: its answers must be those of a run that nobody killed, but for
times. Random moments are seeded.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sightline.evaluation.answers import MEASURED
from sightline.json_text import json_text

KILLS = {False: 100, True: 3}
KILLS_OF_A_RUN = 10  # at most, so that each goes on long enough to be killed in all its stages
SCENES = {False: 24, True: 3}
PATIENCE = 20.0  # seconds in which all processes of a killed run must end
LONGEST = 600.0  # seconds of a run without a kill
MARK = "SIGHTLINE_ATTACK"  # in the environment of a run's processes, so that none is overlooked
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Attempt:
    """How runs are started.

    Args:
        processes: 1 or 2.
        scenes: Of the lab.
    """

    processes: int
    scenes: int

    def start(self, out: Path, *more: str) -> subprocess.Popen[bytes]:
        arguments = ["lab", "--scenes", str(self.scenes), "--batch-size", "4", "--threads", "1"]
        arguments += ["--decoder", "vdd", "--decoder", "vdd+sample", "--no-controls"]
        launch = [sys.executable]
        if self.processes > 1:
            launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
            launch += ["--num_processes", str(self.processes), "--main_process_port", "0"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: str(out)}
        return subprocess.Popen(
            [*launch, "-m", "sightline.evaluation", *arguments, "--out", str(out), *more],
            env={**os.environ, **offline},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def members(out: Path) -> list[int]:
    """The living processes of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(out):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        except psutil.Error:
            continue
    return found


def left_behind(out: Path) -> int:
    """How many processes of a killed run outlive it."""
    until = time.monotonic() + PATIENCE
    while (left := members(out)) and time.monotonic() < until:
        time.sleep(0.1)
    for number in left:
        os.kill(number, signal.SIGKILL)
    return len(left)


def answers(out: Path) -> list[dict[str, Any]]:
    """The answers of a finished run, without times and memory."""
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    kept = (json.loads(line) for line in lines)
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in kept]


@dataclass
class Campaign:
    """Runs of one kind, killed as often as asked.

    Args:
        attempt: The kind.
        folder: Of all runs.
        draw: Of the moments.
    """

    attempt: Attempt
    folder: Path
    draw: random.Random
    kills: int = 0
    left: int = 0
    runs: int = 0
    different: int = 0
    errors: int = 0

    def undisturbed(self) -> tuple[list[dict[str, Any]], float]:
        """The answers of a run that nobody kills, and how long it takes."""
        out, began = self.folder / "undisturbed", time.monotonic()
        process = self.attempt.start(out)
        _, said = process.communicate(timeout=LONGEST)
        if process.returncode:
            raise RuntimeError(f"an undisturbed run failed: {said.decode(errors='replace')}")
        return answers(out), time.monotonic() - began

    def attack(self, wanted: Sequence[dict[str, Any]], seconds: float, kills: int) -> None:
        while self.kills < kills:
            self.runs += 1
            out = self.folder / f"run-{self.attempt.processes}-{self.runs}"
            self.run(out, seconds, min(kills - self.kills, KILLS_OF_A_RUN))
            self.left += left_behind(out)
            self.different += not (out / "answers.jsonl").exists() or answers(out) != wanted

    def run(self, out: Path, seconds: float, kills: int) -> None:
        """One run, killed at random moments and continued until it ends."""
        for _ in range(kills):
            process = self.start(out)
            try:
                process.wait(self.draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(SIGNALS[self.kills % len(SIGNALS)])
                self.kills += 1
                process.communicate()
                self.left += left_behind(out)
            else:
                process.communicate()
                self.errors += process.returncode != 0
                return
        process = self.start(out)
        process.communicate(timeout=LONGEST)
        self.errors += process.returncode != 0

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        return self.attempt.start(out, *(["--resume"] if (out / "run.json").exists() else []))


def attack(short: bool) -> dict[str, Any]:
    """Figures by name; `passed` says whether all of them are as they must be."""
    figures: dict[str, Any] = {"passed": True}
    for processes in (1, 2):
        half = KILLS[short] // 2 + (KILLS[short] % 2 if processes == 1 else 0)
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            attempt = Attempt(processes, SCENES[short])
            campaign = Campaign(attempt, Path(folder), random.Random(processes))
            wanted, seconds = campaign.undisturbed()
            campaign.attack(wanted, seconds, half)
        found = {
            "kills": campaign.kills,
            "runs": campaign.runs,
            "answers": len(wanted),
            "runs that ended in an error": campaign.errors,
            "runs with other answers": campaign.different,
            "processes left": campaign.left,
        }
        good = found["kills"] == half and len(wanted) > 0
        good = good and not any((campaign.errors, campaign.different, campaign.left))
        figures[f"processes: {processes}"] = found
        figures["passed"] = figures["passed"] and good
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="three kills")
    found = attack(parser.parse_args().short)
    print(json_text(found, indent=1))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
