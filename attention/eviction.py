"""Selections: which keys leave the cache between two steps, and how they leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.attention.base import CacheEviction
from sightline.attention.hook import BranchAttention
from sightline.attention.recorder import AttentionRecorder
from sightline.model_protocol import UnsupportedModelError
from sightline.settings import Count, Share, Strength


@dataclass(frozen=True)
class WeakAnswerKeys(CacheEviction):
    """Merges the answer's weakest keys into one, now and then (VATS, arXiv:2501.06553, eqs. 3-5).

    A key's worth is the square of the latest query's attention to it, plus `weight` times the
    softmax over the answer's keys of how much each looked at the image. The prompt's keys stay.

    Args:
        keep: Share of the answer's keys that stays, above 0 and at most 1 (neutral).
        every: Answered tokens between two times.
        weight: Of having looked at the image (lambda), 0 or more.
    """

    keep: Share = 0.9
    every: Count = 32
    weight: Strength = 0.1

    merges = True

    @property
    def is_neutral(self) -> bool:
        return self.keep == 1

    def check(self, recorder: AttentionRecorder) -> None:
        if unkept := recorder.partial | recorder.sharing:
            raise UnsupportedModelError(
                f"layers {sorted(unkept)} of this model do not keep every key, so nothing can be "
                "taken from all layers alike: turn the selection off (keep=1), or ask for fewer "
                "new tokens (max_new_tokens) where they have a window"
            )

    def records(self, recorder: AttentionRecorder) -> Mapping[int, frozenset[str]]:
        asked = {layer: frozenset({"groups"}) for layer in range(recorder.layers)}
        asked[recorder.layers - 1] |= {"image_mass"}
        return asked

    def __call__(self, layer: int, recorder: AttentionRecorder) -> Tensor | None:
        count = recorder.total - recorder.prompt
        stay = int(self.keep * count)
        # A single key that leaves would be merged with itself.
        if recorder.step % self.every or recorder.reads_prompt or count - stay < 2:
            return None
        attention = recorder.groups[layer][..., recorder.prompt : recorder.total]
        strongest = worth(attention, recorder.image_mass[layer], self.weight).topk(stay).indices
        keep = torch.zeros_like(attention, dtype=torch.bool).scatter_(-1, strongest, True)
        kept = keep.new_ones(*keep.shape[:-1], recorder.prompt)
        return torch.cat([kept, keep], dim=-1)


def worth(attention: Tensor, image_mass: Tensor, weight: float) -> Tensor:
    """attention^2 + weight * softmax(image_mass), each `[..., G]` over the answer's keys."""
    return attention**2 + weight * image_mass.softmax(dim=-1)


def cut_cache(
    cache: Any, cache_evictions: Sequence[CacheEviction], blocks: Sequence[BranchAttention]
) -> None:
    """Takes from a `DynamicCache`, and from the recorders, what the cache evictions let go."""
    for selection in cache_evictions:
        removed = set()
        for number, layer in enumerate(cache.layers):
            asked = [selection(number, block.recorder) for block in blocks]
            chosen = [keep for keep in asked if keep is not None]
            if not chosen:
                removed.add(0)
                continue
            if len(chosen) < len(asked):
                raise ValueError(
                    f"{type(selection).__name__} cuts some branches and not others: all branches "
                    "share one cache"
                )
            keep = torch.cat(chosen)
            check_even(keep, selection)
            layer.keys = thinned(layer.keys, keep, selection.merges)
            layer.values = thinned(layer.values, keep, selection.merges)
            for block, own in zip(blocks, chosen, strict=True):
                thin_recorder(block.recorder, number, own, selection.merges)
            removed.add(keep.shape[-1] - layer.keys.shape[2])
        if len(removed) != 1:
            raise ValueError(
                f"{type(selection).__name__} takes {sorted(removed)} keys from different layers: "
                "take equally many from each"
            )
        for block in blocks:
            block.recorder.removed += next(iter(removed))


def check_even(keep: Tensor, selection: CacheEviction) -> None:
    """Raises `ValueError` unless equally many keys stay in every row and head."""
    counts = keep.sum(dim=-1)
    if not bool((counts == counts.flatten()[0]).all()):
        raise ValueError(
            f"{type(selection).__name__} keeps different numbers of keys in different rows or "
            "heads: keep equally many"
        )


def thin_recorder(recorder: AttentionRecorder, layer: int, keep: Tensor, merges: bool) -> None:
    """What is remembered of the keys leaves with them; a merged key gets the mean."""
    if layer in recorder.image_mass:
        prompt = recorder.prompt
        kept = recorder.image_mass[layer][..., None]
        recorder.image_mass[layer] = thinned(kept, keep[..., prompt:], merges)[..., 0]
    if layer in recorder.columns:
        columns = recorder.columns[layer]
        by_head = keep.repeat_interleave(columns.shape[1] // keep.shape[1], dim=1)
        recorder.columns[layer] = thinned(columns[..., None], by_head, merges)[..., 0]


def thinned(values: Tensor, keep: Tensor, merges: bool) -> Tensor:
    """`[R, H, K, D]` without the keys that go; with `merges` their mean in the oldest's place."""
    rows, heads, _, size = values.shape
    if merges:
        gone = ~keep
        weights = gone.to(torch.float32) / gone.sum(dim=-1, keepdim=True)
        mean = torch.einsum("rhk,rhkd->rhd", weights, values.float()).to(values.dtype)
        oldest = gone & (gone.cumsum(dim=-1) == 1)
        values = torch.where(oldest[..., None], mean[:, :, None], values)
        keep = keep | oldest
    return values[keep].view(rows, heads, -1, size)
