"""What benchmarks share: columns of tables, yes and no in an answer, a constant on "yes"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

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


def parse(answer: str) -> str | None:
    """The first "yes" or "no" of an answer, as a whole word in any case; None without one."""
    found = re.search(rf"\b({YES}|{NO})\b", answer.lower())
    return found.group() if found else None


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
