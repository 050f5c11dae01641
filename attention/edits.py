"""Attention edits: which keys of the prompt and the answer weigh more or less."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from sightline.attention.base import AttentionEdit
from sightline.attention.recorder import AttentionRecorder
from sightline.attention.reference import KeyWeights
from sightline.model_protocol import UnsupportedModelError
from sightline.settings import Count, Layers, Positive, Share, Strength, Wanted, Whole

Heads = Annotated[tuple[Whole, ...], Wanted("one or more head numbers, in a tuple or list", bool)]


def check_within(layers: Layers, recorder: AttentionRecorder) -> None:
    """Raises `ValueError` if a range ends outside the model."""
    if layers[1] > recorder.layers:
        raise ValueError(
            f"layers {layers} end outside the model, which has {recorder.layers} decoder layers: "
            f"give a range within (0, {recorder.layers})"
        )


def check_attends(layers: Layers, recorder: AttentionRecorder) -> None:
    """Raises `ValueError` if no layer of a range has attention to edit."""
    if recorder.blind.issuperset(range(*layers)):
        attending = [n for n in range(recorder.layers) if n not in recorder.blind]
        raise UnsupportedModelError(
            f"layers {layers} of this model have no attention to edit (they keep a state, or mix "
            f"no tokens): give a range with one of {attending}"
        )


@dataclass(frozen=True)
class ImageGain(AttentionEdit):
    """Lifts the latest query's scores on image keys by a share of their size (arXiv:2407.21771).

    score + alpha * |score|: positive scores grow and negative ones shrink, so the image's mass
    never falls.

    Args:
        alpha: 0 or more; neutral: 0.
        layers: (first, first after). None: from the third layer to the last.
    """

    alpha: Strength
    layers: Layers | None = None

    about_images = True

    @property
    def is_neutral(self) -> bool:
        return self.alpha == 0

    def check(self, recorder: AttentionRecorder) -> None:
        if self.layers is not None:
            check_within(self.layers, recorder)
        check_attends(self._range(recorder), recorder)

    def _range(self, recorder: AttentionRecorder) -> Layers:
        return self.layers or (min(2, recorder.layers - 1), recorder.layers)

    def __call__(self, layer: int, recorder: AttentionRecorder) -> KeyWeights | None:
        first, after = self._range(recorder)
        if not first <= layer < after:
            return None
        gain = recorder.once(self, lambda: self.alpha * recorder.image_mask[:, None].float())
        return KeyWeights(gain=gain, first_query=recorder.queries - 1)


@dataclass(frozen=True)
class ImageScale(AttentionEdit):
    """Scales scores on the image's keys and on those before it (arXiv:2503.13107).

    Acts on the queries after the image: that is where an answer is formed.

    Args:
        image: Factor on image keys, above 0; neutral: 1.
        system: Factor on the keys before the first image, above 0; neutral: 1.
        layers: (first, first after). None: the middle layers, 9 to 14 of 32, scaled to the model.
        mode: "scale" multiplies the score, so a negative one falls further when the factor is
            above 1; "abs" adds the same share of its size, so that a key never loses by a factor
            above 1.
        heads: Query heads that are edited. None: all.
    """

    image: Positive
    system: Positive
    layers: Layers | None = None
    mode: Literal["scale", "abs"] = "scale"
    heads: Heads | None = None

    about_images = True

    @property
    def is_neutral(self) -> bool:
        return self.image == self.system == 1

    def check(self, recorder: AttentionRecorder) -> None:
        if self.layers is not None:
            check_within(self.layers, recorder)
        check_attends(self.layers or fusion_layers(recorder.layers), recorder)
        if self.heads is None:
            return
        if recorder.heads is None:
            raise ValueError(
                f"heads {self.heads} would mean another share of each layer, as this model's "
                "layers differ in number of heads: leave heads=None"
            )
        if max(self.heads) >= recorder.heads:
            raise ValueError(
                f"heads {self.heads} name one outside the model, which has {recorder.heads} query "
                "heads, counted from 0"
            )

    def __call__(self, layer: int, recorder: AttentionRecorder) -> KeyWeights | None:
        first, after = self.layers or fusion_layers(recorder.layers)
        if not first <= layer < after:
            return None
        factor = recorder.once(self, lambda: self._factor(recorder))
        rows = recorder.after_image if recorder.reads_prompt else 0
        if self.mode == "scale":
            return KeyWeights(scale=factor, first_query=rows)
        return KeyWeights(gain=factor - 1, first_query=rows)

    def _factor(self, recorder: AttentionRecorder) -> Tensor:
        factor = torch.ones(recorder.image_mask.shape, device=recorder.image_mask.device)
        factor = factor.masked_fill(recorder.image_mask, self.image)
        factor = factor.masked_fill(recorder.before_image, self.system)
        if self.heads is None:
            return factor[:, None]
        assert recorder.heads is not None, "checked before the first forward"
        by_head = torch.ones(len(factor), recorder.heads, factor.shape[1], device=factor.device)
        for head in self.heads:  # a list as an index would be copied from the host
            by_head[:, head] = factor
        return by_head


def fusion_layers(count: int) -> Layers:
    """The middle of a model: 9 to 14 of 32 layers, (first, first after)."""
    first = round(count * 9 / 32)
    return first, max(first + 1, round(count * 15 / 32))


@dataclass(frozen=True)
class LeastAttended(AttentionEdit):
    """Leaves only the image keys that the latest query attends to least (arXiv:2408.02032).

    The layer before `start` tells how much, by its mean over heads; from `start` on the other
    image keys are hidden from every query. Chosen again in every forward.

    Args:
        start: First layer with hidden keys, 1 or more.
        ratio: Share of a row's image tokens that stays, above 0 and at most 1 (neutral).
        count: Number that stays, in place of `ratio`.
    """

    start: Count = 3  # the layer before it chooses
    ratio: Share = 0.1
    count: Count | None = None

    about_images = True

    @property
    def is_neutral(self) -> bool:
        return self.count is None and self.ratio == 1

    def check(self, recorder: AttentionRecorder) -> None:
        if self.start >= recorder.layers:
            raise ValueError(
                f"start={self.start} is outside the model, which has {recorder.layers} decoder "
                f"layers: give 1 to {recorder.layers - 1}"
            )
        check_attends((self.start, recorder.layers), recorder)
        if self.start - 1 in recorder.partial:
            whole = [n + 1 for n in range(recorder.layers - 1) if n not in recorder.partial]
            instead = f"choose a start after one that does, of {whole}, or " if whole else ""
            raise UnsupportedModelError(
                f"layer {self.start - 1} does not attend to the whole prompt until the answer's "
                f"end, so it cannot choose among the image's tokens: {instead}ask for fewer new "
                "tokens (max_new_tokens) where it has a window"
            )
        images = recorder.image_mask.sum(dim=1)
        if self.count is not None and bool(((images > 0) & (images < self.count)).any()):
            raise ValueError(
                f"count={self.count} is more than the image tokens of a row "
                f"({int(images[images > 0].min())}): give fewer, or a ratio"
            )

    def records(self, recorder: AttentionRecorder) -> Mapping[int, frozenset[str]]:
        return {self.start - 1: frozenset({"row"})}

    def __call__(self, layer: int, recorder: AttentionRecorder) -> KeyWeights | None:
        if layer < self.start:
            return None
        return KeyWeights(bias=recorder.once(self, lambda: self._hidden(recorder)))

    def _hidden(self, recorder: AttentionRecorder) -> Tensor:
        """-inf on the image keys that go, `[R, 1, P]`."""
        images = recorder.image_mask
        attended = recorder.row[self.start - 1][:, : images.shape[1]]
        stay = kept_count(images.sum(dim=1), self.ratio, self.count)
        keep = smallest(attended, images, stay)
        return torch.zeros_like(attended).masked_fill(images & ~keep, -math.inf)[:, None]


def kept_count(images: Tensor, ratio: float, count: int | None) -> Tensor:
    """How many of `[R]` image tokens stay: at least one, at most all."""
    if count is not None:
        return images.clamp_max(count)
    return (images * ratio + 0.5).floor().long().clamp_min(1)


def smallest(values: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """The `counts` `[R]` smallest of each row's values `[R, P]` where `among`; ties to the left."""
    order = values.masked_fill(~among, math.inf).argsort(dim=1, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return among & (rank < counts[:, None])


@dataclass(frozen=True)
class SinkPenalty(AttentionEdit):
    """Takes the sharpening of all scores back from keys that draw too much (arXiv:2501.06553).

    score * (1 + b - b * w), eq. 7, with w the softmax over the cached keys of all the attention
    that each has drawn so far. The prompt's own forward is left alone: nothing is cached yet.

    Args:
        b: 0 or more; neutral: 0.
    """

    b: Strength = 0.1

    @property
    def is_neutral(self) -> bool:
        return self.b == 0

    @property
    def grows(self) -> bool:
        return True

    def check(self, recorder: AttentionRecorder) -> None:
        if unread := recorder.partial | recorder.sharing:
            raise UnsupportedModelError(
                "the sink penalty sums the attention that each key has drawn, and layers "
                f"{sorted(unread)} of this model do not keep every key: leave it off (b=0), or ask "
                "for fewer new tokens (max_new_tokens) where they have a window"
            )

    def records(self, recorder: AttentionRecorder) -> Mapping[int, frozenset[str]]:
        return {layer: frozenset({"columns"}) for layer in range(recorder.layers)}

    def __call__(self, layer: int, recorder: AttentionRecorder) -> KeyWeights | None:
        if recorder.reads_prompt:
            return None
        drawn = recorder.columns[layer]
        drawn = drawn[..., : recorder.total - 1]
        padding = ~recorder.mask
        drawn = drawn.masked_fill(
            torch.nn.functional.pad(padding, (0, drawn.shape[-1] - padding.shape[1]))[:, None],
            -math.inf,
        )
        scale = 1 + self.b - self.b * drawn.softmax(dim=-1)
        return KeyWeights(scale=torch.nn.functional.pad(scale, (0, 1), value=1 + self.b))
