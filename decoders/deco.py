"""DeCo, Wang et al., ICLR 2025 (arXiv:2410.11779)."""

from dataclasses import dataclass
from typing import Annotated, Any

from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.layers import LayerCorrection, Window
from sightline.settings import Share, Strength, Whole


@dataclass(frozen=True)
class DeCo(Decoder):
    """Give back what the model saw before its last layers talked it out of it.

    Among the last layer's candidates, the earlier layer that is surest of one of them is found,
    and its logits are added as much as it is sure.

    Args:
        alpha: Strength, 0 or more; with `top_k=0` and `top_p=1` neutral at 0.
        layers: First and last layer looked at, both included: shares of the depth, or numbers.
        top_k: Candidates at most; 0 is no limit.
        top_p: In (0, 1]; the most likely tokens up to this probability are candidates.

    Differs from the authors' code: each row of a batch has its own layer, and the window scales
    with the depth of the model.
    """

    alpha: Annotated[Strength, SearchRange(0, 1)] = 0.6
    layers: Window = (0.625, 0.875)
    top_k: Annotated[Whole, SearchRange(0, 50)] = 20
    top_p: Annotated[Share, SearchRange(0.01, 1)] = 0.9

    def recipe(self) -> Recipe:
        layers: Any = self.layers  # mypy takes a union of tuples for a tuple of unions
        return Recipe(rule=LayerCorrection(self.alpha, layers, self.top_k, self.top_p))
