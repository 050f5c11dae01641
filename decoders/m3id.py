"""M3ID, Favero et al., CVPR 2024 (arXiv:2403.14003)."""

from dataclasses import dataclass, field
from typing import Annotated

from sightline.decoders.contrasts import NoImage
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.growing import GrowingGuidance, Space
from sightline.settings import Markers, Processor, Strength, UnitInterval, Whole


@dataclass(frozen=True)
class M3ID(Decoder):
    """Hold on to the image the longer the answer grows.

    Models forget their image as they speak. What the image adds over the image-free prompt is
    strengthened by g(t) = exp(rate * t) - 1 at the t-th token, so the first token is the model's
    own and later ones owe more and more to the image.

    Args:
        rate: Of forgetting, per token, 0 or more; neutral: 0, with beta=0.
        beta: Plausibility threshold in [0, 1].
        cap: The largest g; None for none. Long captions need one: g is 1.7 at 50 tokens.
        space: What is combined: "log_softmax" or "logits".
        start: t of the first token.
        confidence: Rows whose best token is likelier than this are left as they are; None: never.
        markers: Ids of tokens around an image that the model's config does not name.
        processor: The model's own, which says exactly what belongs to an image; it can also be
            passed to `generate`. None: named markers go.

    Two public re-codings disagree about `space` and `start`; the paper's threshold of confidence
    is known to exist and its value is not, so it is off.
    """

    rate: Annotated[Strength, SearchRange(0, 0.1)] = 0.02
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    cap: Annotated[Strength | None, SearchRange(0, 5)] = None
    space: Space = "log_softmax"
    start: Annotated[Whole, SearchRange(0, 5)] = 0
    confidence: Annotated[UnitInterval | None, SearchRange(0, 1)] = None
    markers: Markers = ()
    processor: Processor | None = field(default=None, repr=False, compare=False)

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(NoImage(self.markers, self.processor),),
            rule=GrowingGuidance(
                self.rate, self.beta, self.cap, self.space, self.start, self.confidence
            ),
        )
