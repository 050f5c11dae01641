"""Visual Contrastive Decoding, Leng et al., CVPR 2024 (arXiv:2311.16922)."""

from dataclasses import dataclass
from typing import Annotated

from sightline.decoders.contrasts import NoiseStep, NoisyImage
from sightline.engine.search_range import SearchRange
from sightline.engine.strategy import Decoder, Recipe
from sightline.logits.rules import Contrastive
from sightline.settings import Seed, Strength, UnitInterval


@dataclass(frozen=True)
class VCD(Decoder):
    """Take off what the model would say of the same image under heavy noise.

    What survives a ruined image comes from the language prior, so it is contrasted away (eq. 3),
    among the tokens that the model finds plausible on the clean image (eq. 5).

    Args:
        alpha: Contrast strength, 0 or more; 0 leaves the logits as they are.
        beta: Plausibility threshold in [0, 1], a share of the expert's best probability; 0 keeps
            every token.
        noise_step: Forward diffusion steps, 0 to 999; 999 is close to pure noise.
        seed: Of the noise, which is drawn once per call from the seed and the image's processed
            pixels, and kept for the whole answer. The paper's tables are means of five runs: seeds
            0 to 4.

    Differs from the authors' code: the noise depends on the seed and the image, not on what was
    drawn before (`NoisyImage` says how to repeat a draw of theirs), and is the same for both
    temporal copies of a still image; every step has its own amateur cache, logits are combined in
    float32, and greedy and beam search are contrasted too.
    """

    alpha: Annotated[Strength, SearchRange(0, 3)] = 1.0
    beta: Annotated[UnitInterval, SearchRange(0, 1)] = 0.1
    noise_step: Annotated[NoiseStep, SearchRange(0, 999)] = 500
    seed: Annotated[Seed, SearchRange(0, 99)] = 0

    @classmethod
    def pope_paper(cls) -> "VCD":
        """The noise that the paper reports for POPE; its scripts use the default's 500."""
        return cls(noise_step=999)

    @classmethod
    def pope_script(cls) -> "VCD":
        """The authors' script for POPE: the default's noise and beta 0.2."""
        return cls(beta=0.2)

    def recipe(self) -> Recipe:
        return Recipe(
            contrasts=(NoisyImage(self.noise_step, self.seed),),
            rule=Contrastive(self.alpha, self.beta),
        )
