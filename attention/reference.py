"""Attention with three numbers per key: the definition, in plain torch.

Every score becomes `score * scale + |score| * gain + bias` before the mask and the softmax, with
`score = q . k * scaling`. The Triton kernel computes the same and is tested against this.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sightline.messages import short

SCORES_AT_ONCE = 2**18  # float32 scores held at a time: 1 MiB, of which some copies live at once
QUERIES_AT_ONCE = 16  # at least: each chunk of queries reads all keys
KEYS_AT_ONCE = 128


@dataclass(frozen=True)
class KeyWeights:
    """Three numbers per key, each `[B, H, W]` or with 1 for B or H, for the first W of K keys.

    Keys after the first W, a number of each tensor's own, are neutral. None is neutral everywhere.

    Args:
        scale: Multiplies the score; neutral: 1.
        gain: Multiplies the score's absolute value, and is added; neutral: 0.
        bias: Is added, -inf hides the key; neutral: 0.
        first_query: The first query that is edited, counted within this call: an int, or one per
            row of the batch `[B]`. 0 edits all, Q - 1 the last one.
    """

    scale: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    first_query: int | Tensor = 0

    def __post_init__(self):
        for name in ("scale", "gain", "bias"):
            weight = getattr(self, name)
            if weight is not None and not (isinstance(weight, Tensor) and weight.ndim == 3):
                raise ValueError(
                    f"{name} must be a tensor [B, H, W] with 1 where rows or heads share it, got "
                    f"{short(getattr(weight, 'shape', weight))}"
                )


@dataclass(frozen=True)
class Record:
    """What to keep of the probabilities, without ever holding all of them.

    Args:
        row: Of the last query, the mean over heads, `[B, K]`.
        groups: Of the last query, the mean over the query heads of each KV head, `[B, Hkv, K]`.
        columns: The sum over queries, `[B, H, K]`.
        mass: Of the last query, the sum over these keys, `[B, H]`; a bool mask `[B, W]` of the
            first W keys.
    """

    row: bool = False
    groups: bool = False
    columns: bool = False
    mass: Tensor | None = None


class Recorded(NamedTuple):
    """What a `Record` asked for, float32; None where it did not."""

    row: Tensor | None = None
    groups: Tensor | None = None
    columns: Tensor | None = None
    mass: Tensor | None = None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = False,
    weights: KeyWeights | None = None,
    record: Record | None = None,
) -> tuple[Tensor, Recorded]:
    """Edited attention, computed in float32.

    Args:
        query: `[B, H, Q, D]`, the latest Q positions.
        key, value: `[B, Hkv, K, D]`; H is a multiple of Hkv, neighbouring heads share.
        scaling: Factor on `q . k`.
        mask: Broadcastable to `[B, H, Q, K]`. Bool: true where a key is seen. Else added after the
            edit; -inf or its dtype's lowest number hides a key.
        causal: Query i sees the keys up to i + K - Q, besides what `mask` says.
        weights: The edit; None leaves the scores as they are.
        record: What to keep.

    Returns:
        `[B, Q, H, D]` in the query's dtype, as transformers' attention functions do, and what was
        recorded. A query that sees no key gets zeros.
    """
    rows, heads, queries, size = query.shape
    groups, keys = key.shape[1:3]
    wanted = record or Record()
    if queries > 1:
        key, value = key.float(), value.float()  # read by every chunk of queries
    chunk = max(QUERIES_AT_ONCE, SCORES_AT_ONCE // max(1, rows * heads * keys))
    parts = []
    columns = query.new_zeros(rows, heads, keys, dtype=torch.float32) if wanted.columns else None
    probabilities = query.new_zeros(rows, heads, 0, keys, dtype=torch.float32)
    for start in range(0, queries, chunk):
        some = query[:, :, start : start + chunk].float()
        at = torch.arange(start, start + some.shape[2], device=query.device)
        packed = some.reshape(rows, groups, -1, size)
        scores = products(packed, key).view(rows, heads, -1, keys) * scaling
        if weights is not None:
            scores = edit(scores, weights, at)
        scores = hide(scores, mask, at, queries, causal)
        probabilities = softmax(scores)
        if columns is not None:
            columns += probabilities.sum(dim=2)
        seen = mixture(probabilities.view(rows, groups, -1, keys), value)
        parts.append(seen.view(rows, heads, -1, value.shape[-1]).transpose(1, 2).to(query.dtype))
    last = probabilities[:, :, -1]  # [B, H, K]
    grouped = last.view(rows, groups, -1, keys).mean(dim=2)
    return torch.cat(parts, dim=1), Recorded(
        row=last.mean(dim=1) if wanted.row else None,
        groups=grouped if wanted.groups else None,
        columns=columns,
        mass=None if wanted.mass is None else mass_on(last, wanted.mass),
    )


def chosen_rows(
    query: Tensor,
    key: Tensor,
    chosen: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = False,
    weights: KeyWeights | None = None,
) -> Tensor:
    """Mean probabilities over heads and over the queries `chosen` `[B, Q]` bool, `[B, K]` float32.

    The other arguments are those of `attend`. Each row is taken by itself, as rows choose
    different queries; a row that chooses none gets zeros.
    """
    rows, heads, queries, size = query.shape
    groups, keys = key.shape[1:3]
    means = query.new_zeros(rows, keys, dtype=torch.float32)
    for row in range(rows):
        at = torch.nonzero(chosen[row], as_tuple=True)[0]
        if not len(at):
            continue
        packed = query[row : row + 1, :, at].float().reshape(1, groups, -1, size)
        scores = products(packed, key[row : row + 1]).view(1, heads, -1, keys) * scaling
        if weights is not None:
            scores = edit(scores, row_of(weights, row, rows), at)
        own = mask if mask is None or mask.shape[0] == 1 else mask[row : row + 1]
        means[row] = softmax(hide(scores, own, at, queries, causal)).mean(dim=(0, 1, 2))
    return means


def row_of(weights: KeyWeights, row: int, rows: int) -> KeyWeights:
    """The weights of one of `rows` rows."""

    def own(values: Tensor | None) -> Tensor | None:
        return values if values is None or len(values) < rows else values[row : row + 1]

    first = weights.first_query
    return KeyWeights(
        own(weights.scale),
        own(weights.gain),
        own(weights.bias),
        first if isinstance(first, int) else first[row : row + 1],
    )


def products(query: Tensor, key: Tensor) -> Tensor:
    """`[B, Hkv, q, D]` float32, `[B, Hkv, K, D]` -> `[B, Hkv, q, K]` float32.

    Half-precision keys, read once, are made float32 a block at a time, which stays in a
    processor's cache.
    """
    blocks = [key] if key.dtype == torch.float32 else key.split(KEYS_AT_ONCE, dim=2)
    return torch.cat([query @ block.float().mT for block in blocks], dim=-1)


def mixture(probabilities: Tensor, value: Tensor) -> Tensor:
    """`[B, Hkv, q, K]` float32, `[B, Hkv, K, D]` -> `[B, Hkv, q, D]` float32, by blocks as well."""
    if value.dtype == torch.float32:
        return probabilities @ value
    blocks = zip(
        probabilities.split(KEYS_AT_ONCE, dim=-1), value.split(KEYS_AT_ONCE, dim=2), strict=True
    )
    first, *others = (share @ block.float() for share, block in blocks)
    return sum(others, start=first)


def edit(scores: Tensor, weights: KeyWeights, at: Tensor) -> Tensor:
    """`[B, H, q, K]` scores of the queries number `at` `[q]` -> the edited scores."""
    keys = scores.shape[-1]
    edited = scores
    if weights.scale is not None:
        edited = edited * over_keys(weights.scale, keys, 1.0)
    if weights.gain is not None:
        edited = edited + scores.abs() * over_keys(weights.gain, keys, 0.0)
    if weights.bias is not None:
        edited = edited + over_keys(weights.bias, keys, 0.0)
    if isinstance(weights.first_query, int) and weights.first_query == 0:
        return edited
    first = torch.as_tensor(weights.first_query, device=at.device).view(-1, 1, 1, 1)
    return torch.where(at[:, None] >= first, edited, scores)


def over_keys(weight: Tensor, keys: int, neutral: float) -> Tensor:
    """`[B, H, W]` -> `[B, H, 1, K]` float32, neutral after the first W keys."""
    return pad(weight.float(), (0, keys - weight.shape[-1]), value=neutral)[:, :, None]


def hide(scores: Tensor, mask: Tensor | None, at: Tensor, queries: int, causal: bool) -> Tensor:
    """-inf where a key is not seen."""
    keys = scores.shape[-1]
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], queries, keys)[..., at, :]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        else:
            lowest = torch.finfo(mask.dtype).min
            scores = (scores + mask.float()).masked_fill(mask <= lowest, -math.inf)
    if causal:
        ahead = torch.arange(keys, device=at.device) > at[:, None] + keys - queries
        scores = scores.masked_fill(ahead, -math.inf)
    return scores


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; zeros where everything is -inf."""
    top = scores.amax(dim=-1, keepdim=True)
    exponents = (scores - top.masked_fill(torch.isneginf(top), 0)).exp()
    return exponents / exponents.sum(dim=-1, keepdim=True).clamp_min(1e-30)


def mass_on(last: Tensor, chosen: Tensor) -> Tensor:
    """`[B, H, K]` probabilities, `[B, W]` keys -> their mass `[B, H]`."""
    return (last[..., : chosen.shape[-1]] * chosen[:, None]).sum(dim=-1)
