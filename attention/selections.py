"""Selections: which keys leave the cache between two steps, and how they leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.attention.interface import Stream
from sightline.attention.ledger import Ledger
from sightline.attention.parts import Selection
from sightline.settings import Count, Share, Strength


@dataclass(frozen=True)
class WeakAnswerKeys(Selection):
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

    def check(self, ledger: Ledger) -> None:
        if unkept := ledger.partial | ledger.sharing:
            raise ValueError(
                f"layers {sorted(unkept)} of this model do not keep every key, so nothing can be "
                "taken from all layers alike: turn the selection off (keep=1), or ask for fewer "
                "new tokens (max_new_tokens) where they have a window"
            )

    def records(self, ledger: Ledger) -> Mapping[int, frozenset[str]]:
        asked = {layer: frozenset({"groups"}) for layer in range(ledger.layers)}
        asked[ledger.layers - 1] |= {"looks"}
        return asked

    def __call__(self, layer: int, ledger: Ledger) -> Tensor | None:
        count = ledger.total - ledger.prompt
        stay = int(self.keep * count)
        # A single key that leaves would be merged with itself.
        if ledger.step % self.every or ledger.reads_prompt or count - stay < 2:
            return None
        attention = ledger.groups[layer][..., ledger.prompt : ledger.total]
        strongest = worth(attention, ledger.looks[layer], self.weight).topk(stay).indices
        keep = torch.zeros_like(attention, dtype=torch.bool).scatter_(-1, strongest, True)
        kept = keep.new_ones(*keep.shape[:-1], ledger.prompt)
        return torch.cat([kept, keep], dim=-1)


def worth(attention: Tensor, looks: Tensor, weight: float) -> Tensor:
    """attention^2 + weight * softmax(looks), each `[..., G]` over the answer's keys."""
    return attention**2 + weight * looks.softmax(dim=-1)


def cut_cache(cache: Any, selections: Sequence[Selection], blocks: Sequence[Stream]) -> None:
    """Takes from a `DynamicCache`, and from the ledgers, what the selections let go."""
    for selection in selections:
        removed = set()
        for number, layer in enumerate(cache.layers):
            asked = [selection(number, block.ledger) for block in blocks]
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
                thin_ledger(block.ledger, number, own, selection.merges)
            removed.add(keep.shape[-1] - layer.keys.shape[2])
        if len(removed) != 1:
            raise ValueError(
                f"{type(selection).__name__} takes {sorted(removed)} keys from different layers: "
                "take equally many from each"
            )
        for block in blocks:
            block.ledger.removed += next(iter(removed))


def check_even(keep: Tensor, selection: Selection) -> None:
    """Raises `ValueError` unless equally many keys stay in every row and head."""
    counts = keep.sum(dim=-1)
    if not bool((counts == counts.flatten()[0]).all()):
        raise ValueError(
            f"{type(selection).__name__} keeps different numbers of keys in different rows or "
            "heads: keep equally many"
        )


def thin_ledger(ledger: Ledger, layer: int, keep: Tensor, merges: bool) -> None:
    """What is remembered of the keys leaves with them; a merged key gets the mean."""
    if layer in ledger.looks:
        prompt = ledger.prompt
        looks = ledger.looks[layer][..., None]
        ledger.looks[layer] = thinned(looks, keep[..., prompt:], merges)[..., 0]
    if layer in ledger.columns:
        columns = ledger.columns[layer]
        by_head = keep.repeat_interleave(columns.shape[1] // keep.shape[1], dim=1)
        ledger.columns[layer] = thinned(columns[..., None], by_head, merges)[..., 0]


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
