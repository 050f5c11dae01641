"""What the expert is compared with. A contrast makes an amateur: `(expert, model) -> Branch`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sightline.decoders.branch import Branch
from sightline.decoders.noise import noise_like

LAST_NOISE_STEP = 999


@dataclass(frozen=True)
class NoImage:
    """The same prompt with the pictures taken out (arXiv:2403.05262, variant "none").

    Args:
        markers: Ids of tokens around a picture that the model's config does not name.
        processor: The model's own, which says exactly what belongs to a picture. None: the
            call's, `generate(..., processor=processor)`, if it has one.
    """

    markers: tuple[int, ...] = ()
    processor: Any = field(default=None, repr=False)

    def __call__(self, expert: Branch, model: Any) -> Branch:
        processor = expert.call.processor if self.processor is None else self.processor
        return expert.without_pictures(model, markers=self.markers, processor=processor)


@dataclass(frozen=True)
class UnknownImage:
    """The same prompt with a word that means nothing for each picture (variant "unk").

    Args:
        tokens: Ids that stand for one picture, usually the tokenizer's `unk_token_id` alone.
        markers: Ids of tokens around a picture that the model's config does not name.
        processor: As in `NoImage`.
    """

    tokens: tuple[int, ...]
    markers: tuple[int, ...] = ()
    processor: Any = field(default=None, repr=False)

    def __post_init__(self):
        if not self.tokens or any(token < 0 for token in self.tokens):
            raise ValueError(f"tokens must be one or more token ids, got {self.tokens}")

    def __call__(self, expert: Branch, model: Any) -> Branch:
        known = model.get_input_embeddings().num_embeddings
        if max(self.tokens) >= known:
            raise ValueError(
                f"tokens must be below {known}, as many as there are, got {self.tokens}"
            )
        processor = expert.call.processor if self.processor is None else self.processor
        return expert.without_pictures(model, self.tokens, self.markers, processor)


@dataclass(frozen=True)
class NoisyImage:
    """The same prompt, the pictures under Gaussian noise (arXiv:2311.16922, section 3.2).

    The noise acts on the processor's normalised pixels, is drawn once per call and depends on
    nothing but the seed and the shape of the picture: not on its neighbours in a batch. None falls
    on padding.

    Args:
        noise_step: Steps of forward diffusion, 0 (a trace of noise) to 999 (close to pure noise).
        seed: Of the noise; the global random state is neither read nor advanced.
    """

    noise_step: int = 500
    seed: int = 0

    needs_pixels = True

    def __post_init__(self):
        if isinstance(self.noise_step, bool) or not isinstance(self.noise_step, int):
            raise ValueError(f"noise_step must be a whole number, got {self.noise_step!r}")
        if not 0 <= self.noise_step <= LAST_NOISE_STEP:
            raise ValueError(
                f"noise_step must be between 0 and {LAST_NOISE_STEP}, got {self.noise_step}"
            )

    def __call__(self, expert: Branch, model: Any) -> Branch:
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
    steps = torch.linspace(-6, 6, LAST_NOISE_STEP + 1, dtype=torch.float64)
    gamma = torch.sigmoid(steps) * (5e-3 - 1e-5) + 1e-5
    left = torch.prod(1 - gamma[: noise_step + 1])
    return left.sqrt().to(pixels.dtype) * pixels + (1 - left).sqrt().to(pixels.dtype) * noise


def needs_pixels(part: Any) -> bool:
    """Whether a part edits pictures, and so must see them before they are encoded."""
    return getattr(part, "needs_pixels", False)


def needs_images(part: Any) -> bool:
    """Whether a part looks at the caller's pictures."""
    return getattr(part, "needs_images", False)
