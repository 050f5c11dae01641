"""Files of visitors: each gives an image or a sentence, in bounded time and memory."""

import resource
import sys
import time
from collections import Counter
from typing import Any

from attack_files import hostile, sound

from sightline.demo.decoding import BYTES, SECONDS, Bounds, decode

BOUNDS = Bounds(pixels=50_000_000, side=128)
SLACK = 2.0  # seconds in which a process begins and ends
MOST_MB = BYTES / 1e6
FEW = 12  # the short form has every twelfth


def attack(short: bool) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    wrong, slowest, before = [], ("", 0.0), largest_child()
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
    peak = largest_child()
    return {
        # Where it has not grown it is that of another process, from before.
        "passed": not wrong and (sys.platform != "linux" or peak in (before, min(peak, MOST_MB))),
        "files": outcomes.total(),
        **outcomes,
        "wrong": wrong,
        "slowest": f"{slowest[0]}, {slowest[1]:.1f} s",
        "peak MB of a process": round(peak),
    }


def largest_child() -> float:
    """Megabytes of the process that was largest, of all that this one has started."""
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e6


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
        return ("sentence", "") if str(error).startswith("the picture") else ("other", str(error))
    except Exception as error:
        return "other", f"{type(error).__name__}: {error}"
    assert found.image is not None
    fits = found.image.width * found.image.height <= BOUNDS.kept_pixels * 1.01
    return ("image" if fits else "other"), str(found.image.size)
