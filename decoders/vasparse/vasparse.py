"""VASparse, Zhuang et al., CVPR 2025 (arXiv:2501.06553)."""

from dataclasses import dataclass
from typing import Annotated

from sightline.attention.edits import SinkPenalty
from sightline.attention.eviction import WeakAnswerKeys
from sightline.decoders.vasparse.embedding import RELEASED, EmbeddingContrastive
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.settings import Count, Share, Strength, UnitInterval


@dataclass(frozen=True)
class VASparse(Decoder):
    """Say less of what merely follows the last word, and forget what never looked at the image.

    Three parts, each with a switch: the head on the last token's embedding is contrasted away
    (eq. 6); every so often the answer's weakest keys are merged into one (eqs. 3-5); keys that
    draw too much attention are damped (eq. 7). No second branch.

    Args:
        alpha: Contrast strength, 0 or more; neutral: 0.
        beta: Plausibility threshold in [0, 1]; neutral: 0.
        keep: Share of the answer's keys that stays, above 0 and at most 1; neutral: 1.
        every: Answered tokens between two times that keys leave, 1 or more.
        weight: Of having looked at the image, against attention (lambda), 0 or more.
        sink: Penalty on sinks (b), 0 or more; neutral: 0, the default until it has shown its use.
        sum_to_one: Off for l - alpha * l_phi, in which the model's logits keep the weight 1.

    Differs from the authors' code, which does not run as released and, repaired, computes the
    contrast alone with twelve times its weight (`released`): this is the
    paper. The paper's masking of image tokens cannot change what the contrast reads, so there is
    no setting for it. Expect no speed-up: a few of the answer's keys are a small part of a cache.
    """

    alpha: Annotated[Strength, SearchRange(0, 2)] = 0.1
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    keep: Annotated[Share, SearchRange(0.5, 1)] = 0.9
    every: Annotated[Count, SearchRange(1, 64)] = 32
    weight: Annotated[Strength, SearchRange(0, 1)] = 0.1
    sink: Annotated[Strength, SearchRange(0, 1)] = 0.0
    sum_to_one: bool = True

    @classmethod
    def paper(cls) -> "VASparse":
        """All three parts. The paper decodes with `num_beams=3` for 64 tokens, 2 for 512."""
        return cls(sink=0.1)

    @classmethod
    def released(cls) -> "VASparse":
        """The authors' code, if repaired: l - 1.1 * l_phi, without the two other parts."""
        return cls(alpha=RELEASED, keep=1.0, sum_to_one=False)

    def recipe(self) -> Recipe:
        return Recipe(
            rule=EmbeddingContrastive(self.alpha, self.beta, self.sum_to_one),
            attention_edits=(SinkPenalty(self.sink),),
            cache_evictions=(WeakAnswerKeys(self.keep, self.every, self.weight),),
        )
