"""DAMRO, Gong et al., EMNLP 2024 (arXiv:2410.04514)."""

from dataclasses import dataclass
from typing import Annotated

from sightline.decoders.damro.outliers import OutlierImage, Score, TowerLayer
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Contrastive
from sightline.settings import Count, Strength, UnitInterval


@dataclass(frozen=True)
class DAMRO(Decoder):
    """Take off what the model would say of the few image tokens that draw the most attention.

    A vision tower's class token attends to a handful of patches, often plain background, far
    beyond their content; the language model over-attends to the same ones, the more so when it
    invents. An amateur that sees only these is contrasted away among the plausible tokens.

    Args:
        alpha: Contrast strength, 0 or more; 0 leaves the logits as they are. 2 is what all of the
            authors' scripts use on LLaVA; for InstructBLIP they publish 0.5 (POPE), 1.5 (CHAIR).
        beta: Plausibility threshold in [0, 1], a share of the expert's best probability; 0 keeps
            every token.
        k: Tokens that the amateur sees of each image, 1 or more. None: 10 in 576, at least 1
            (the paper's 10 for LLaVA, 4 of 256 for InstructBLIP).
        score: "auto", "concat", "head_mean" (attention of the tower's class token), or a
            substitute for towers without one, "pooled_query", "received", "norm": see
            `OutlierImage`. "auto" is "concat" with a class token and "pooled_query" without.
        layer: Of the tower: "features", the one that the language model gets, or "last".

    Differs from the authors' code: logits processors (temperature, top-p, penalties) act, which
    theirs skips; a chosen token is the patch itself, where theirs takes the left neighbour for
    InstructBLIP; several images, batches and beams work; greedy and beam search are contrasted
    too; k follows the number of tokens; models without a class token are scored by a substitute.
    Models that resample patches (Q-Formers, pixel shuffles) only take `score="norm"`; the paper
    chooses before the Q-Former.
    """

    alpha: Annotated[Strength, SearchRange(0, 4)] = 2.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    k: Annotated[Count | None, SearchRange(1, 30)] = None
    score: Score = "auto"
    layer: TowerLayer = "features"

    @classmethod
    def first_release(cls) -> "DAMRO":
        """The layer that the authors' first code read, whose output LLaVA never uses."""
        return cls(layer="last")

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(OutlierImage(self.k, self.score, self.layer),),
            rule=Contrastive(self.alpha, self.beta),
        )
