"""DoLa, Chuang et al., ICLR 2024 (arXiv:2309.03883)."""

from dataclasses import dataclass
from typing import Annotated

from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.layers import Candidates, Divergence, LayerContrast
from sightline.settings import UnitInterval


@dataclass(frozen=True)
class DoLa(Decoder):
    """Favour what the model came to think late over what an earlier layer already said.

    A baseline for text that other methods are compared with; neutral to harmful on images by the
    tables of DeCo's authors. There is no neutral setting.

    Args:
        layers: Candidate layers: "low", "high", or a tuple of numbers (0 the embeddings).
        divergence: "jsd" as in the paper, or "code", the authors' with swapped arguments.
        beta: Plausibility threshold in [0, 1], a share of the best probability; 0 keeps all.

    Differs from the authors' code: each row of a batch has its own layer, and the divergence is
    the paper's.
    """

    layers: Candidates = "low"
    divergence: Divergence = "jsd"
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1

    def recipe(self) -> Recipe:
        return Recipe(rule=LayerContrast(self.layers, self.divergence, self.beta))
