"""What of an image a question is about, and the image with the rest blacked out.

The image-prompt matching of AGLA, An et al., CVPR 2025 (arXiv:2406.12718): the relevance of each
pixel, the share that is masked, and BLIP as the model that both come from.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from sightline.messages import short
from sightline.settings import Checked, Processor, UnitInterval, Whole, wrong

WORDS, TOKENS = 50, 35
PUNCTUATION = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
ENC = 30523
"""BLIP's `[ENC]`: the last row of its embedding table, which its tokenizer may not list."""
SIGMA = 0.02
"""Standard deviation of the blur, a share of the map's side."""
MARGIN = 12
"""Cells added around a grid before splines are fitted; their far end counts for under 1e-6."""


@dataclass(frozen=True, eq=False)
class Relevance(Checked):
    """How much a question is about each pixel of an image.

    Args:
        values: `[H, W]` in [0, 1], in pixels of the image as it was given.
        masked: Share of the pixels to black out, the least relevant ones, in [0, 1].
    """

    values: Tensor
    masked: UnitInterval

    def __post_init__(self):
        super().__post_init__()
        if self.values.ndim != 2:
            raise ValueError(f"values must be [H, W], got {list(self.values.shape)}")
        if not ((self.values >= 0) & (self.values <= 1)).all():
            raise ValueError("values must be in [0, 1], and some are not")


class Matcher(Checked, ABC):
    """Finds out what each question is about in its image."""

    needs_attention = False
    """Whether it reads the attention of the model that answers."""
    layers: tuple[int, int] | None = None
    """Whose attention it reads, (first, first after); None: from 40 % to 75 % of the depth."""

    @abstractmethod
    def __call__(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        attention_maps: Sequence[Any] = (),
    ) -> list[Relevance]:
        """The relevance of each image to the question beside it.

        `attention_maps` holds the attention of the model that answers, where `needs_attention`.
        """


@dataclass(frozen=True, eq=False)
class BlipMatcher(Matcher):
    """Asks BLIP, fine-tuned to match images and captions, which pixels a question is about.

    Relevance is the cross-attention of one layer of its text encoder times the gradient of the
    match logit (GradCAM); the share that is masked is half the cosine of image and text. The
    images are encoded once, and of gradients only that of the one layer's probabilities is taken,
    so that nothing accumulates on parameters. Works inside `torch.no_grad` and `inference_mode`.

    Questions are cleaned as captions are, and of long ones the end is read: 50 words, 35 tokens.

    Args:
        model: A `BlipForImageTextRetrieval`, as `Salesforce/blip-itm-large-coco`.
        processor: Its `BlipProcessor`.
        layer: Of the text encoder, from 0; the authors read 6 of 12.

    Differs from the authors' code: the map is brought to the image's own size, where they squash
    the image to BLIP's square; the border is not taken for irrelevant; long questions work.
    """

    model: Any
    processor: Processor
    layer: Whole = 6

    def __post_init__(self):
        super().__post_init__()
        if not hasattr(self.processor, "tokenizer"):
            raise wrong("processor", "the checkpoint's BlipProcessor", self.processor)
        for name in ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head"):
            if not hasattr(self.model, name):
                raise ValueError(
                    f"BLIP needs a head that matches images and texts, and this model has no "
                    f"{name}: load the checkpoint as BlipForImageTextRetrieval"
                )
        layers = self.model.text_encoder.encoder.layer
        if self.layer >= len(layers):
            raise wrong("layer", f"a whole number from 0 to {len(layers) - 1}", self.layer)
        if not hasattr(layers[self.layer], "crossattention"):
            raise ValueError(
                f"layer {self.layer} of the text encoder does not attend to images: load the "
                "checkpoint with is_decoder=True in its text config"
            )
        self._enc()

    def __call__(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        attention_maps: Sequence[Any] = (),
    ) -> list[Relevance]:
        pairs = list(zip(images, questions, strict=True))
        # Row by row: a batch rounds differently, and padding would enter the mean over tokens.
        with torch.inference_mode(False), evaluating(self.model):
            return [self._match(image, question) for image, question in pairs]

    def _match(self, image: Image.Image, question: str) -> Relevance:
        model = self.model
        ids = self._ids(question)
        with torch.device("cpu"):
            prepared = self.processor.image_processor(image.convert("RGB"), return_tensors="pt")
        pixels = prepared["pixel_values"].to(model.device, model.dtype)
        with torch.no_grad():
            encoded = model.vision_model(pixel_values=pixels).last_hidden_state  # [1, 1+N, C]
            text = model.text_encoder(input_ids=ids).last_hidden_state
            projected = model.vision_proj(encoded[:, 0]), model.text_proj(text[:, 0])
            cosine = cosine_similarity(*(p.float() for p in projected))
        relevance = token_relevance(*self._attention(ids, encoded)).cpu()
        rows, columns = self._grid(pixels, relevance)
        side = max(pixels.shape[-2:])
        values = spread(relevance.view(rows, columns), side)
        size = (image.height, image.width)
        values = interpolate(values[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
        return Relevance(values.clamp(0, 1), cosine_share(cosine.item()))

    def _attention(self, ids: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's probabilities and the match logit's gradient by them, `[h, T, 1+N]` each."""
        model = self.model
        paired = ids.clone()
        paired[:, 0] = self._enc()  # transformers leaves [CLS] there for both heads (5.23)
        cross = model.text_encoder.encoder.layer[self.layer].crossattention.self
        with torch.enable_grad(), outputs_of(cross) as seen:
            # The keys depend on this leaf, so that frozen parameters do no harm.
            leaf = encoded.detach().requires_grad_()
            states = model.text_encoder(input_ids=paired, encoder_hidden_states=leaf)
            match = model.itm_head(states.last_hidden_state[:, 0])[0, 1]
            [(_, attention)] = seen
            (gradient,) = torch.autograd.grad(match, attention)
        return attention[0].detach().float(), gradient[0].float()

    def _ids(self, question: str) -> Tensor:
        """`[1, T]`: `[CLS]`, the question's last tokens, `[SEP]`."""
        tokenizer = self.processor.tokenizer
        limit = min(TOKENS, self.model.config.text_config.max_position_embeddings) - 2
        ids = tokenizer(cleaned(question), add_special_tokens=False)["input_ids"][-limit:]
        if not ids:
            raise ValueError(f"a question with words in it is needed, got {short(question)}")
        ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        return torch.tensor([ids], device=self.model.device)

    def _enc(self) -> int:
        listed = self.processor.tokenizer.get_vocab().get("[ENC]", ENC)
        rows = self.model.get_input_embeddings().num_embeddings
        if listed >= rows:
            raise ValueError(
                f"the text encoder knows {rows} tokens, and [ENC], which it matches images with, "
                f"would be number {listed}: take a checkpoint that was trained to match, as "
                "Salesforce/blip-itm-large-coco, with its own processor"
            )
        return listed

    def _grid(self, pixels: Tensor, relevance: Tensor) -> tuple[int, int]:
        """Patches per column and per row of the image as BLIP saw it."""
        patch = self.model.config.vision_config.patch_size
        sides = (patch, patch) if isinstance(patch, int) else patch
        rows, columns = (size // side for size, side in zip(pixels.shape[-2:], sides, strict=True))
        if rows * columns != len(relevance):
            raise ValueError(
                f"{len(relevance)} patches were attended to, and the image has {rows} x {columns}"
            )
        return rows, columns


def cleaned(question: str) -> str:
    """In small letters, without most punctuation (a question mark stays), the last 50 words."""
    return " ".join(question.lower().translate(PUNCTUATION).split()[-WORDS:])


def token_relevance(attention: Tensor, gradient: Tensor) -> Tensor:
    """Relevance of each patch: the mean over heads and words of attention times its gain.

    `attention * max(gradient, 0)`, both `[h, T, 1+N]` -> `[N]`. The image's class token comes
    first and is left out, as are the text's first and last token (`[ENC]`, `[SEP]`), which carry
    large gradients.
    """
    if attention.shape != gradient.shape or attention.ndim != 3 or attention.shape[1] < 3:
        raise ValueError(
            "attention and its gradient must be [h, T, 1+N] with a word between [ENC] and [SEP], "
            f"got {list(attention.shape)} and {list(gradient.shape)}"
        )
    gain = attention * gradient.clamp(min=0)
    return gain[:, 1:-1, 1:].mean(dim=(0, 1))


def spread(grid: Tensor, size: int = 384) -> Tensor:
    """A map of patches, `[gh, gw]`, as a smooth map of pixels, `[size, size]` in [0, 1].

    Scaled to [0, 1], enlarged by cubic splines, blurred (sigma 0.02 * size), scaled again. A map
    that is the same everywhere gives zeros.
    """
    scaled = stretched(grid.double())
    return stretched(blurred(enlarged(scaled, size))).to(
        torch.promote_types(grid.dtype, torch.float32)
    )


def stretched(values: Tensor) -> Tensor:
    """Least value to 0, greatest to 1; a constant to 0."""
    values = values - values.min()
    top = values.max()
    return values / top if top > 0 else values


def enlarged(grid: Tensor, size: int) -> Tensor:
    """`[gh, gw]` in [0, 1] -> `[size, size]` by cubic splines; what overshoots is cut off."""
    rows, columns = (spline(cells, size).to(grid) for cells in grid.shape)
    return (rows @ grid @ columns.T).clamp(0, 1)


def spline(cells: int, size: int) -> Tensor:
    """The cubic spline through `cells` values, at `size` places: `[size, cells]` float64.

    Values stand in the middle of cells and places in the middle of pixels. Beyond the border the
    values are continued by the outermost.
    """
    index = torch.arange(-MARGIN, cells + MARGIN, device="cpu")
    inside = index.clamp(0, cells - 1)[:, None] == torch.arange(cells, device="cpu")
    values = inside.double()
    places = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * cells / size - 0.5
    weights = torch.linalg.solve(basis(index[:, None] - index), values)
    return basis(places[:, None] - index) @ weights


def basis(distance: Tensor) -> Tensor:
    """The cubic B-spline at a distance from its knot, in knots; float64."""
    x = distance.double().abs()
    near = 2 / 3 - x**2 + x**3 / 2
    far = (2 - x).clamp(min=0) ** 3 / 6
    return torch.where(x < 1, near, far)


def blurred(values: Tensor) -> Tensor:
    """Gaussian blur of a square map `[S, S]`, sigma 0.02 * S cut at 4 sigma, mirrored borders."""
    size = len(values)
    sigma = SIGMA * size
    reach = int(4 * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1, device="cpu")
    bell = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    reached = (torch.arange(size, device="cpu")[:, None] + steps) % (2 * size)
    reached = torch.minimum(reached, 2 * size - 1 - reached)
    kernel = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    kernel.scatter_add_(1, reached, (bell / bell.sum()).expand(size, -1))
    kernel = kernel.to(values)
    return kernel @ values @ kernel.T


def kept_pixels(relevance: Tensor, masked: float) -> Tensor:
    """All pixels but a share of the least relevant: `[H, W]` -> `[H, W]` bool.

    What is as relevant as the last pixel kept stays too, so a map of zeros masks nothing.

    Differs from the authors' code at a share of 0, where it blackens 1 pixel in 100,000.
    """
    count = relevance.numel()
    index = min(math.floor(count * (1 - masked)), count - 1)
    return relevance >= relevance.flatten().kthvalue(count - index).values


def masked_image(image: Image.Image, kept: Tensor) -> Image.Image:
    """The image, black where `[H, W]` is false; RGB, of the same size."""
    if kept.shape != (image.height, image.width):
        raise ValueError(
            f"the image is {image.height} x {image.width}, and its mask {list(kept.shape)}"
        )
    image = image.convert("RGB")
    mask = Image.fromarray(kept.to("cpu", torch.uint8).mul(255).numpy())
    return Image.composite(image, Image.new("RGB", image.size), mask)


def cosine_share(cosine: float) -> float:
    """Share to mask, at most half: the better the match, the more; nothing if it is negative."""
    return min(max(cosine, 0.0), 1.0) / 2


def entropy_share(values: Tensor) -> float:
    """Share to mask, at most half: the more peaked the map, the more; nothing if it is uniform.

    `(1 - H(values / sum) / ln N) / 2` over all N values, none of them negative.
    """
    if (values < 0).any() or not values.isfinite().all():
        raise ValueError("values must be finite and not negative to have an entropy")
    flat = values.double().flatten()
    if len(flat) < 2 or not flat.any():
        return 0.0
    entropy = torch.special.entr(flat / flat.sum()).sum().item()
    return max(0.0, 1 - entropy / math.log(len(flat))) / 2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, each module's training flag as before afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what a module returns to this thread.

    transformers' own `output_attentions` would leave hooks behind (5.23).
    """
    thread = threading.get_ident()
    seen: list[Any] = []

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        if threading.get_ident() == thread:
            seen.append(output)

    handle = module.register_forward_hook(record)
    try:
        yield seen
    finally:
        handle.remove()
