"""M3ID, Favero et al., CVPR 2024 (arXiv:2403.14003): the longer the answer, the more image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sightline.logits.rules import Needs, Rule, State, mean
from sightline.settings import Strength, UnitInterval, Whole

Space = Literal["log_softmax", "logits"]
SATURATED = 1e9  # beyond it float32 holds nothing of l_c, and products come near infinity


@dataclass(frozen=True)
class GrowingGuidance(Rule):
    """Hold on to the image as the answer grows: l_c + g(t) * (l_c - l_u).

    A model forgets its image with every token it says, at a rate taken as exp(-rate * t), so
    what the image adds is strengthened to make up for it:

        g(t) = (1 - exp(-rate * t)) / exp(-rate * t) = exp(rate * t) - 1,   t = step + start

    l_c is the expert's, l_u that of the mean of the others (without the image), over the tokens
    plausible to the expert. g grows without bound: long captions need a cap.

    Args:
        rate: Of forgetting, per token; 0 leaves the expert's logits as they are, over the
            plausible tokens. 0.02 doubles the expert's weight at 35 tokens (g = 1).
        beta: Plausibility threshold in [0, 1], a share of the best probability; 0 keeps all.
        cap: The largest g; None for none.
        space: "log_softmax" combines log-probabilities, "logits" logits. Scores of a row differ by
            a constant, which only processors that look at signs can tell (repetition penalty).
        start: t of the first token.
        confidence: In [0, 1]. Rows whose expert gives its best token a higher probability are
            left as they are, at this step; None for none. The paper has such a threshold; its
            value is not verified.

    Two public re-codings disagree: one takes log-probabilities and t from 1, the other logits and
    t from 0, without a cap.
    """

    rate: Strength = 0.02
    beta: UnitInterval = 0.1
    cap: Strength | None = None
    space: Space = "log_softmax"
    start: Whole = 0
    confidence: UnitInterval | None = None

    @property
    def needs(self) -> Needs:
        return Needs(others=self.rate > 0 and self.cap != 0, cut=self.beta > 0)

    def strength(self, step: int) -> float:
        """g at the token that follows `step` answered ones."""
        cap = SATURATED if self.cap is None else min(self.cap, SATURATED)
        exponent = self.rate * (step + self.start)
        return cap if exponent > math.log1p(cap) else math.expm1(exponent)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        if not self.needs.others:
            return logits[0]
        expert, other = logits[0], mean(logits[1:])
        if self.space == "log_softmax":
            expert, other = expert.log_softmax(dim=-1), other.log_softmax(dim=-1)
        scores = expert + self.strength(state.step) * (expert - other)
        if self.confidence is None:
            return scores
        sure = expert.softmax(dim=-1).amax(dim=-1, keepdim=True) > self.confidence
        return torch.where(sure, expert, scores)
