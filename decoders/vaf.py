"""Visual Amplification Fusion (ClearSight), Yin et al., CVPR 2025 (arXiv:2503.13107)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sightline.attention.edits import Heads, ImageScale
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.settings import MOST, Layers, Limits


@dataclass(frozen=True)
class VAF(Decoder):
    """Look harder at the image in the middle layers, and less at the system prompt.

    Image and text meet in the middle layers; there the scores on image keys are scaled up and
    those on the tokens before the image down. One branch, no second forward.

    Args:
        enhance: Share by which scores on image keys grow, above -1; neutral: 0.
        suppress: Share by which scores on the keys before the first image shrink, below 1;
            neutral: 0.
        layers: (first, first after) of the edited layers; None: 9 to 14 of 32, scaled to the
            model.
        mode: "scale" as published, where a negative score on an image key falls further; "abs"
            adds the same share of the score's size instead.
        heads: Query heads that are edited; None: all, as in the authors' code. The paper edits
            those it calls visual-perception heads.

    Differs from the authors' code: image tokens are found in each row, whatever the length of the
    prompt; several images are all enhanced, and what stands before the first is suppressed.
    """

    enhance: Annotated[float, Limits(-1, above=True), SearchRange(0, 0.5)] = 0.15
    suppress: Annotated[float, Limits(-MOST, 1, below=True), SearchRange(0, 0.5)] = 0.05
    layers: Layers | None = None
    mode: Literal["scale", "abs"] = "scale"
    heads: Heads | None = None

    def recipe(self) -> Recipe:
        scale = ImageScale(1 + self.enhance, 1 - self.suppress, self.layers, self.mode, self.heads)
        return Recipe(attention_edits=(scale,))
