"""When a contrast is worth its forward: a gate looks at the expert alone."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.logits.rules import Rule
from sightline.settings import Checked, Share, Strength


@dataclass(frozen=True)
class Gate(Checked, ABC):
    """Base of all gates. Subclasses define `opens`."""

    is_exact = False  # whether it is closed only where no contrast could change the token

    @abstractmethod
    def opens(self, expert: Tensor, rule: Rule) -> Tensor:
        """Which rows need the other branches: the expert's logits `[R, V]` float32 -> bool `[R]`.

        Banned tokens are at -inf.

        Args:
            rule: Whose plausibility cut would be in force.
        """


@dataclass(frozen=True)
class PlausibilityGate(Gate):
    """Open where more than one token is plausible to the expert.

    Exact: where one is left, no contrast can change it.
    """

    is_exact = True

    def opens(self, expert: Tensor, rule: Rule) -> Tensor:
        return rule.keep(expert).sum(dim=-1) > 1


@dataclass(frozen=True)
class ConfidenceGate(Gate):
    """Open where the expert's best token is less likely than a threshold.

    Not exact: where it is closed, the scores are those of branches that agree with the expert.

    Args:
        probability: Of the best token, above 0 and at most 1; 1 opens for every row that has more
            than one possible token.
    """

    probability: Share = 0.9

    def opens(self, expert: Tensor, rule: Rule) -> Tensor:
        best = expert.amax(dim=-1) - expert.logsumexp(dim=-1)
        return best < math.log(self.probability)


@dataclass(frozen=True)
class EntropyGate(Gate):
    """Open where the expert's distribution has more than so much entropy.

    Not exact: where it is closed, the scores are those of branches that agree with the expert.

    Args:
        entropy: In nats, 0 or more.
    """

    entropy: Strength = 0.5

    def opens(self, expert: Tensor, rule: Rule) -> Tensor:
        return torch.distributions.Categorical(logits=expert).entropy() > self.entropy
