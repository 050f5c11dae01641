"""Presence as in POPE (arXiv:2305.10355) and captions as in CHAIR (arXiv:1809.02156), by scene.

Each metric becomes a `Ratio` of sums over scenes, so that one bootstrap serves all of them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sightline.evaluation.statistics import HIGHER, LOWER, Ratio

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Args:
        name: The key in `summary.json`.
        title: The head of the column.
        better: "higher", "lower", or None where neither side is good in itself.
    """

    name: str
    title: str
    better: str | None


PRESENCE = (
    Metric("present", "present", HIGHER),
    Metric("usual", "absent, usual", HIGHER),
    Metric("other", "absent, other", HIGHER),
    Metric("accuracy", "accuracy", HIGHER),
    Metric("f1", "F1", HIGHER),
    Metric("yes_rate", "yes-rate", None),
)
CAPTIONS = (
    Metric("chair_i", "CHAIR_i", LOWER),
    Metric("chair_s", "CHAIR_s", LOWER),
    Metric("recall", "recall", HIGHER),
    Metric("tokens", "tokens", None),
    Metric("named", "objects named", None),
)


@dataclass(frozen=True)
class Asked:
    """A question of presence and what was answered.

    Args:
        scene: Index of the scene, 0 to N - 1.
        kind: A kind of question; "present" where the object is there.
        answer: "yes", "no", or None for an answer that is neither.
    """

    scene: int
    kind: str
    answer: str | None

    @property
    def is_right(self) -> bool:
        return self.answer == (YES if self.kind == "present" else NO)


@dataclass(frozen=True)
class Described:
    """A caption: the objects it names, those that are there, and its length in tokens."""

    scene: int
    named: frozenset[str]
    present: frozenset[str]
    tokens: int


def parse(answer: str) -> str | None:
    """The first "yes" or "no" of an answer, as a whole word in any case; None without one."""
    found = re.search(rf"\b({YES}|{NO})\b", answer.lower())
    return found.group() if found else None


def presence(asked: Sequence[Asked], scenes: int) -> dict[str, Ratio]:
    """The metrics named in `PRESENCE`.

    An answer that is neither yes nor no is wrong, and no yes. F1 is of "present":
    2 TP / (answers yes + questions whose object is there).
    """
    present = [a.kind == "present" for a in asked]
    yes = [a.answer == YES for a in asked]
    right = [a.is_right for a in asked]
    hits = [p and y for p, y in zip(present, yes, strict=True)]

    def sums(values: Iterable[float]) -> np.ndarray:
        return by_scene([a.scene for a in asked], values, scenes)

    ones = sums([1] * len(asked))
    ratios = {"accuracy": Ratio(sums(right), ones), "yes_rate": Ratio(sums(yes), ones)}
    for kind in ("present", "usual", "other"):
        of_kind = [a.kind == kind for a in asked]
        both = [r and k for r, k in zip(right, of_kind, strict=True)]
        ratios[kind] = Ratio(sums(both), sums(of_kind))
    ratios["f1"] = Ratio(2 * sums(hits), sums(yes) + sums(present))
    return ratios


def captions(described: Sequence[Described], scenes: int) -> dict[str, Ratio]:
    """The metrics named in `CAPTIONS`.

    CHAIR_i is the share of invented among named objects, CHAIR_s the share of captions with an
    invented object, recall the share of objects that are named. An empty caption invents nothing
    and finds nothing.
    """

    def sums(values: Iterable[float]) -> np.ndarray:
        return by_scene([d.scene for d in described], values, scenes)

    named = sums(len(d.named) for d in described)
    ones = sums([1] * len(described))
    return {
        "chair_i": Ratio(sums(len(d.named - d.present) for d in described), named),
        "chair_s": Ratio(sums(not d.named <= d.present for d in described), ones),
        "recall": Ratio(
            sums(len(d.named & d.present) for d in described),
            sums(len(d.present) for d in described),
        ),
        "tokens": Ratio(sums(d.tokens for d in described), ones),
        "named": Ratio(named, ones),
    }


def by_scene(scene: Sequence[int], values: Iterable[float], scenes: int) -> np.ndarray:
    """Values summed over the answers of each scene, `[N]`."""
    return np.bincount(scene, weights=[float(v) for v in values], minlength=scenes)


@dataclass(frozen=True)
class Logits:
    """What the greedy model gives the first token of an answer: its best "yes", "no", and rest."""

    yes: float
    no: float
    rest: float

    @property
    def margin(self) -> float:
        """How far "yes" is above everything else."""
        return self.yes - max(self.no, self.rest)

    def answer(self, shift: float = 0.0) -> str | None:
        """The greedy answer with `shift` added to the logit of "yes"."""
        if self.margin + shift > 0:
            return YES
        return NO if self.no >= self.rest else None


def fit_shift(logits: Sequence[Logits], yes: int) -> float:
    """The constant on the logit of "yes" under which `yes` of the questions are answered so.

    Halfway between the last margin that turns to "yes" and the first that does not; questions of
    equal margin turn together.
    """
    if not 0 <= yes <= len(logits):
        raise ValueError(f"{yes} of {len(logits)} questions cannot be answered with yes")
    margins = sorted((entry.margin for entry in logits), reverse=True)
    above = margins[yes - 1] if yes else margins[0] + 2
    below = margins[yes] if yes < len(margins) else margins[-1] - 2
    return -(above + below) / 2
