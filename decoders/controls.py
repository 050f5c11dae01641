"""Controls for contrasts (arXiv:2504.10020) and for AGLA (arXiv:2406.12718)."""

from dataclasses import dataclass
from typing import Any

from sightline.engine.branch import Branch
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Additive, Plausibility


@dataclass(frozen=True)
class PlausibilityOnly(Decoder):
    """The model's own answer, over the tokens it finds plausible.

    Args:
        beta: Threshold in [0, 1], a share of the best token's probability.
    """

    beta: float = 0.1

    def recipe(self) -> Recipe:
        return Recipe(rule=Plausibility(self.beta))


@dataclass(frozen=True)
class SameImage:
    """The prompt as it is, a second time."""

    def __call__(self, expert: Branch, model: Any) -> Branch:
        return expert


@dataclass(frozen=True)
class FullTwice(Decoder):
    """AGLA's control: the full image in the place of the masked one.

    Both branches agree, so greedy decoding is the model's own; under sampling it shows what the
    plausibility cut and the sharper sum do without any mask.

    Args:
        alpha: Weight of the second branch, 0 or more.
        beta: Plausibility threshold in [0, 1].
        normalize: Divides the sum by 1 + alpha.
    """

    alpha: float = 2.0
    beta: float = 0.5
    normalize: bool = False

    def recipe(self) -> Recipe:
        rule = Additive(self.alpha, self.beta, self.normalize)
        return Recipe(contrasts=(SameImage(),), rule=rule)
