"""What the expert is compared with. A contrast makes an amateur: `(expert, model) -> Branch`."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from sightline.engine.branch import Branch
from sightline.engine.prompt_edits import without_images
from sightline.model_protocol import Model
from sightline.settings import Checked, Limits, Markers, Processor, Seed, TokenId, Wanted
from sightline.vision.noise import noise_like

LAST_NOISE_STEP = 999
NoiseStep = Annotated[int, Limits(0, LAST_NOISE_STEP)]
TokenIds = Annotated[tuple[TokenId, ...], Wanted("one or more token ids, in a tuple or list", bool)]


@dataclass(frozen=True)
class NoImage(Checked):
    """The same prompt with the images taken out (arXiv:2403.05262, variant "none").

    Args:
        markers: Ids of tokens around an image that the model's config does not name.
        processor: The model's own, which says exactly what belongs to an image. None: the
            call's, `generate(..., processor=processor)`, if it has one.
    """

    markers: Markers = ()
    processor: Processor | None = field(default=None, repr=False)

    about_images = True

    def __call__(self, expert: Branch, model: Model) -> Branch:
        processor = expert.call.processor if self.processor is None else self.processor
        return without_images(expert, model, markers=self.markers, processor=processor)


@dataclass(frozen=True)
class UnknownImage(Checked):
    """The same prompt with a word that means nothing for each image (variant "unk").

    Args:
        tokens: Ids that stand for one image, usually the tokenizer's `unk_token_id` alone.
        markers: Ids of tokens around an image that the model's config does not name.
        processor: As in `NoImage`.
    """

    tokens: TokenIds
    markers: Markers = ()
    processor: Processor | None = field(default=None, repr=False)

    about_images = True

    def __call__(self, expert: Branch, model: Model) -> Branch:
        known = model.get_input_embeddings().num_embeddings
        if max(self.tokens) >= known:
            raise ValueError(
                f"tokens must be below {known}, as many as there are, got {self.tokens}"
            )
        processor = expert.call.processor if self.processor is None else self.processor
        return without_images(expert, model, self.tokens, self.markers, processor)


@dataclass(frozen=True)
class NoisyImage(Checked):
    """The same prompt, the images under Gaussian noise (arXiv:2311.16922, section 3.2).

    The noise acts on the processor's normalised pixels, is drawn once per call and depends on
    nothing but the seed and the image's own processed pixels: not on the batch, the order or the
    padding. None falls on padding. The same seed and pixels (float32 or bfloat16, any device)
    repeat a draw; another processor, or other settings of it, is another draw.

    The authors draw from the global random state, one image after the other. To repeat such a
    draw, or any noise of your own, write a contrast that hands it to `diffuse`:

        class GlobalNoise:
            needs_pixels = True

            def __call__(self, expert, model):
                return expert.with_pixels(
                    lambda name, pixels: diffuse(pixels, torch.randn_like(pixels), 500)
                )

    Args:
        noise_step: Steps of forward diffusion, 0 (a trace of noise) to 999 (close to pure noise).
        seed: Of the noise; the global random state is neither read nor advanced.
    """

    noise_step: NoiseStep = 500
    seed: Seed = 0

    needs_pixels = True

    def __call__(self, expert: Branch, model: Model) -> Branch:
        vision = getattr(model.config, "vision_config", None)

        def noised(name: str, pixels: Tensor) -> Tensor:
            noise = noise_like(pixels, name, expert.pixels, vision, self.seed)
            return diffuse(pixels.float(), noise.to(pixels.device), self.noise_step).to(
                pixels.dtype
            )

        return expert.with_pixels(noised)


def diffuse(pixels: Tensor, noise: Tensor, noise_step: int) -> Tensor:
    """sqrt(a) * pixels + sqrt(1 - a) * noise, with a the share of signal left after `noise_step`.

    a is the product of 1 - gamma over steps 0..noise_step, gamma rising along a sigmoid from
    1e-5 to 5e-3: the schedule behind all published numbers of VCD, not the constant of its paper.
    """
    steps = torch.linspace(-6, 6, LAST_NOISE_STEP + 1, dtype=torch.float64, device="cpu")
    gamma = torch.sigmoid(steps) * (5e-3 - 1e-5) + 1e-5
    left = torch.prod(1 - gamma[: noise_step + 1])
    return left.sqrt().to(pixels.dtype) * pixels + (1 - left).sqrt().to(pixels.dtype) * noise
