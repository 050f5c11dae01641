"""Files of visitors: each gives an image or a sentence, in bounded time and memory."""

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attack_files import hostile, sound

from sightline.demo import decoding
from sightline.demo.decoding import BYTES, SECONDS, Bounds, decode

BOUNDS = Bounds(pixels=50_000_000, side=128)
SLACK = 2.0  # seconds in which a process begins and ends
MOST_MB = BYTES / 1e6
FEW = 12  # the short form has every twelfth
LOOK_EVERY = 0.002  # seconds


def attack(short: bool) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    wrong, slowest = [], ("", 0.0)
    with watched() as peaks:
        for index, (name, data, is_sound) in enumerate(files(short)):
            if short and index % FEW:
                continue
            start = time.perf_counter()
            outcome, said = outcome_of(data)
            seconds = time.perf_counter() - start
            outcomes[outcome] += 1
            slowest = max(slowest, (name, seconds), key=lambda one: one[1])
            if outcome == "other" or (is_sound and outcome != "image") or seconds > SECONDS + SLACK:
                wrong.append(f"{name}: {outcome} after {seconds:.1f} s, {said}")
    peak = max(peaks.values(), default=0.0)
    is_bounded = sys.platform != "linux" or 0 < peak <= MOST_MB
    return {
        "passed": not wrong and is_bounded,
        "files": outcomes.total(),
        **outcomes,
        "wrong": wrong,
        "slowest": f"{slowest[0]}, {slowest[1]:.1f} s",
        "processes watched": len(peaks),
        "peak MB of a process": round(peak),
    }


@contextmanager
def watched() -> Iterator[dict[int, float]]:
    """The most megabytes of each process that opens a file, by its number; on Linux alone.

    `ru_maxrss` would tell those of this process where they are more: a process that is started has
    its parent's memory until it runs a program of its own.
    """
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    peaks: dict[int, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            with suppress(OSError, ValueError):
                for number in map(int, children.read_text().split()):
                    if decoding.__name__ in Path(f"/proc/{number}/cmdline").read_text():
                        status = Path(f"/proc/{number}/status").read_text()
                        if found := re.search(r"VmHWM:\s+(\d+)", status):
                            peaks[number] = max(peaks.get(number, 0), int(found[1]) * 1024 / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def files(short: bool) -> list[tuple[str, bytes, bool]]:
    """(name, content, whether it is an image) of each."""
    return [(name, data, True) for name, data in sound()] + [
        (name, data, False) for name, data in hostile(short)
    ]


def outcome_of(data: bytes) -> tuple[str, str]:
    """What comes of a file: an image, a sentence, or something else."""
    try:
        found = decode(data, "image", BOUNDS)
    except ValueError as error:
        return ("sentence", "") if str(error).startswith("the image") else ("other", str(error))
    except Exception as error:
        return "other", f"{type(error).__name__}: {error}"
    assert found.image is not None
    fits = found.image.width * found.image.height <= BOUNDS.kept_pixels * 1.01
    return ("image" if fits else "other"), str(found.image.size)
