"""What the expert is compared with. A contrast makes an amateur: `(expert, model) -> Branch`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.decoders.branch import Branch

LAST_NOISE_STEP = 999


@dataclass(frozen=True)
class NoImage:
    """The same prompt with the pictures taken out (arXiv:2403.05262, variant "none").

    Args:
        markers: Ids of tokens around a picture that the model's config does not name.
    """

    markers: tuple[int, ...] = ()

    def __call__(self, expert: Branch, model: Any) -> Branch:
        return expert.without_pictures(model, markers=self.markers)


@dataclass(frozen=True)
class UnknownImage:
    """The same prompt with a word that means nothing for each picture (variant "unk").

    Args:
        tokens: Ids that stand for one picture, usually the tokenizer's `unk_token_id` alone.
        markers: Ids of tokens around a picture that the model's config does not name.
    """

    tokens: tuple[int, ...]
    markers: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.tokens or any(token < 0 for token in self.tokens):
            raise ValueError(f"tokens must be one or more token ids, got {self.tokens}")

    def __call__(self, expert: Branch, model: Any) -> Branch:
        known = model.get_input_embeddings().num_embeddings
        if max(self.tokens) >= known:
            raise ValueError(
                f"tokens must be below {known}, as many as there are, got {self.tokens}"
            )
        return expert.without_pictures(model, replacement=self.tokens, markers=self.markers)


@dataclass(frozen=True)
class NoisyImage:
    """The same prompt, the pictures under Gaussian noise (arXiv:2311.16922, section 3.2).

    The noise acts on the processor's normalised pixels, is drawn once per call and depends on
    nothing but the seed and the shape of the picture: not on its neighbours in a batch.

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
            noise = self._noise(name, pixels, expert, vision)
            return diffuse(pixels.float(), noise.to(pixels.device), self.noise_step).to(
                pixels.dtype
            )

        return expert.with_pixels(noised)

    def _noise(self, name: str, pixels: Tensor, expert: Branch, vision: Any) -> Tensor:
        """Standard normal noise of the shape of `pixels`, float32, on the CPU."""
        is_video = name == "pixel_values_videos"
        if pixels.ndim == 2:  # Qwen: [patches, channels * frames * height * width of a patch]
            grids = expert.pixels.get("video_grid_thw" if is_video else "image_grid_thw")
            if grids is None:
                raise ValueError(
                    f"noise must know where a picture ends: {name} has shape "
                    f"{tuple(pixels.shape)} and came without its grid"
                )
            frames = getattr(vision, "temporal_patch_size", 1)
            channels = getattr(vision, "in_channels", 3)
            counts = grids.prod(dim=-1).tolist()
            return torch.cat([self._patches(n, pixels, channels, frames, is_video) for n in counts])
        sizes = _sizes_within(pixels, expert.pixels.get("image_sizes"))
        if sizes:
            noise = torch.zeros(pixels.shape)
            for i, (height, width) in enumerate(sizes):
                noise[i, :, :height, :width] = self._draw((pixels.shape[1], height, width))
            return noise
        frame = pixels.shape[1:][-3:]
        return torch.stack(
            [torch.stack(self._frames(picture, frame)).view(picture.shape) for picture in pixels]
        )

    def _frames(self, picture: Tensor, frame: torch.Size) -> list[Tensor]:
        """Independent noise for each tile or video frame, the same however many follow."""
        generator = self._generator()
        count = picture.numel() // frame.numel()
        return [torch.randn(frame, generator=generator) for _ in range(count)]

    def _patches(
        self, count: int, pixels: Tensor, channels: int, frames: int, is_video: bool
    ) -> Tensor:
        """Noise for one flattened picture, the same in every copy of a still image's frame.

        A still image is repeated over the temporal patch; independent noise would be averaged
        away there by the patch convolution.
        """
        area = pixels.shape[1] // (channels * frames)
        drawn = self._draw((count, channels, frames if is_video else 1, area))
        return drawn.expand(count, channels, frames, area).reshape(count, -1)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def _sizes_within(pixels: Tensor, sizes: Any) -> list[list[int]]:
    """Height and width of pictures padded to the batch's largest (Pixtral); empty if not padded.

    Other families give the size of the original file under the same name.
    """
    if sizes is None or pixels.ndim != 4 or len(sizes) != len(pixels):
        return []
    sizes = torch.as_tensor(sizes).tolist()
    fits = all(h <= pixels.shape[2] and w <= pixels.shape[3] for h, w in sizes)
    return sizes if fits else []


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
