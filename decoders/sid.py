"""Self-Introspective Decoding, Huo et al., ICLR 2025 (arXiv:2408.02032)."""

from dataclasses import dataclass, replace
from typing import Annotated

from sightline.attention.edits import LeastAttended
from sightline.engine.branch import Branch
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Contrastive
from sightline.model_protocol import Model
from sightline.settings import Checked, Count, Share, Strength, UnitInterval


@dataclass(frozen=True)
class Unattended(Checked):
    """The same prompt and images, of which later layers see only what is attended to least.

    Args:
        hiding: Which layers and how much.
    """

    hiding: LeastAttended

    about_images = True

    def __call__(self, expert: Branch, model: Model) -> Branch:
        return replace(expert, attention_edits=(self.hiding,))


@dataclass(frozen=True)
class SID(Decoder):
    """Take off what the model would say of the parts of the image that it ignores.

    An amateur that sees the least attended image tokens after its first layers makes the errors
    of context, which are contrasted away among the tokens plausible to the expert.

    Args:
        alpha: Contrast strength, 0 or more; 0 leaves the logits as they are.
        beta: Plausibility threshold in [0, 1].
        start: First layer, counted from 0, in which the amateur is blinded, 1 or more; the layer
            before it chooses. The paper's "layer i".
        ratio: Share of a row's image tokens that the amateur keeps, above 0 and at most 1.
        count: Number that it keeps, 1 or more, in place of `ratio`.

    Differs from the authors' code: greedy decoding has the plausibility cut and the user's
    processors; alpha and beta are what they say; each row chooses for itself and keeps its padding
    hidden; the defaults are the paper's (layer 3, 10 %), not the scripts' (layer 2, 100 tokens).
    """

    alpha: Annotated[Strength, SearchRange(0, 3)] = 1.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    start: Annotated[Count, SearchRange(1, 10)] = 3
    ratio: Annotated[Share, SearchRange(0.01, 1)] = 0.1
    count: Annotated[Count | None, SearchRange(1, 200)] = None

    @classmethod
    def sid_2408(cls) -> "SID":
        """The code of August 2024 under sampling: layer 2, 100 tokens, beta 0.4."""
        return cls(beta=0.4, start=2, count=100)

    @classmethod
    def sid_head(cls) -> "SID":
        """The latest released code under sampling: layer 2, 100 tokens, alpha 0.5."""
        return cls(alpha=0.5, start=2, count=100)

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(Unattended(LeastAttended(self.start, self.ratio, self.count)),),
            rule=Contrastive(self.alpha, self.beta),
        )
