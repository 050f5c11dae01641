"""Paying More Attention to Image, Liu et al., ECCV 2024 (arXiv:2407.21771)."""

from dataclasses import dataclass, field
from typing import Annotated

from sightline.attention.edits import ImageGain
from sightline.decoders.contrasts import NoImage
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Guidance
from sightline.settings import Layers, Markers, Processor, Strength, UnitInterval


@dataclass(frozen=True)
class PAI(Decoder):
    """Look harder at the image, and take off what would be said without it.

    The latest token's attention to the image is lifted in all but the first layers, for the
    answer alone; then guidance moves away from the image-free prompt, whose attention is as ever.

    Args:
        alpha: Share of a score's size that is added on image keys, 0 or more; neutral: 0.
        gamma: Guidance, 0 or more. 1 needs no second branch and gives the expert's
            log-probabilities without the cut; with alpha=0 it is neutral.
        beta: Plausibility threshold in [0, 1] of the guidance.
        layers: (first, first after) of the edited layers; None: from the third to the last.
        markers: Ids of tokens around an image that the model's config does not name.
        processor: The model's own, which says exactly what belongs to an image; it can also be
            passed to `generate`. None: named markers go.

    Differs from the authors' code: each row of a batch has its own image tokens, also under
    padding; the edit comes before the mask; beams reorder the image-free branch too.
    """

    alpha: Annotated[Strength, SearchRange(0, 1)] = 0.2
    gamma: Annotated[Strength, SearchRange(1, 2)] = 1.1
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    layers: Layers | None = None
    markers: Markers = ()
    processor: Processor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def without_guidance(cls, alpha: float = 0.2) -> "PAI":
        """The attention part alone: one branch."""
        return cls(alpha=alpha, gamma=1.0)

    def recipe(self) -> Recipe:
        gain = ImageGain(self.alpha, self.layers)
        rule = Guidance(self.gamma, self.beta)
        if gain.is_neutral and not rule.needs.others:
            return Recipe()
        without = NoImage(self.markers, self.processor)
        return Recipe(attention_edits=(gain,), contrasts=(without,), rule=rule)
