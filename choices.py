"""Ways to decode, from text: the model's own or a decoder's, and how tokens are drawn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.specs import Request

PLAIN = {"greedy": False, "sample": True}
"""Names of the model's own decoding -> whether it samples."""


@dataclass(frozen=True)
class Choice:
    """One way to decode.

    Args:
        label: The name in lower case, with the settings as the user wrote them.
        request: The decoder that was asked for. None: the model's own decoding.
        sample: Whether tokens are drawn. None: as `Sampling.sample` says.
    """

    label: str
    request: "Request | None" = None
    sample: bool | None = None

    def build(self, processor: Any) -> Any:
        """The decoder; None for the model's own decoding."""
        return None if self.request is None else self.request.build(processor)


@dataclass(frozen=True)
class Sampling:
    """How tokens are taken from the scores, and how many."""

    max_new_tokens: int
    seed: int
    sample: bool
    temperature: float | None

    def draws(self, choice: Choice) -> bool:
        return self.sample if choice.sample is None else choice.sample

    def check(self, choices: Iterable[Choice]) -> None:
        """Raises `ValueError` for a temperature that is none, or that nothing would use."""
        if self.temperature is None:
            return
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a number > 0, got {self.temperature}")
        if not any(map(self.draws, choices)):
            raise ValueError("temperature has no effect where nothing is drawn: add --sample")

    def arguments(self, choice: Choice) -> dict[str, Any]:
        """For `generate`."""
        draws = self.draws(choice)
        heat = {"temperature": self.temperature} if draws and self.temperature else {}
        return dict(max_new_tokens=self.max_new_tokens, do_sample=draws, num_beams=1, **heat)


def plain_name(sample: bool) -> str:
    return next(name for name, draws in PLAIN.items() if draws == sample)


def parse_choices(text: str) -> list[Choice]:
    """`greedy,vdd:alpha=0.5,beta=0.2` -> choices, or `ValueError`."""
    from sightline.specs import split_decoders

    return [parse_choice(name, assignments) for name, assignments in split_decoders(text)]


def parse_choice(name: str, assignments: Sequence[str]) -> Choice:
    """A name and its `name=value` settings -> a choice, or `ValueError`."""
    from sightline.specs import choose

    if name not in PLAIN:
        request = choose(name, assignments, others=PLAIN)
        return Choice(request.label, request)
    if assignments:
        raise ValueError(f"{name} has no settings, got {', '.join(assignments)}")
    return Choice(name, sample=PLAIN[name])
