"""`reference.attend`, fused: what `attention/reference.py` defines, in Triton, for CUDA.

Imported where it is used: importing it registers the ops `sightline::attend_decode` and
`sightline::attend_prefill`, which have fake implementations and never wait for the device, so that
they may be compiled and captured in a graph. There is no backward.

Scores are held in units of log 2 (`score * log2(e)`), because the device has `exp2`; the edit is of
degree one, so only what is added (bias, additive mask) needs the factor too. Nothing seen so far is
a maximum of -inf, which `_floor` replaces before it is subtracted: -inf - -inf would be NaN.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, empty

from sightline.attention.reference import KeyWeights, Record, Recorded

LOG2E = tl.constexpr(math.log2(math.e))
HIDDEN = tl.constexpr(-math.inf)
TINY = tl.constexpr(1e-30)

# Four programs for each of the 132 multiprocessors of an H100 or H200: enough reads in flight to
# fill the memory, few enough that all are resident at once.
DECODE_PROGRAMS = 4 * 132
# A split has at least this many keys, so that its partial sums (one row of float32 per head) stay
# small beside the keys and values it reads; at most this many splits, for the reducing pass.
MIN_SPLIT_KEYS = 64
MAX_SPLITS = 256
# Bytes of a tile of keys or values, three tiles deep: leaves room for four programs in the shared
# memory of a multiprocessor. The widest block of keys is bound by registers.
DECODE_TILE = 2**13
DECODE_KEYS = 128
DECODE_STAGES = 3
# Elements that a program of the reducing pass holds in registers: partial outputs, scores.
REDUCE_TILE = 2**12
RECORD_TILE = 2**13
# Where tiles of 128 queries (one program per multiprocessor) would leave some of an H200 idle,
# tiles of 64 (two programs) spread the work better. Exact float32 has no tensor cores: its products
# are unrolled and need small tiles, or they spill registers.
PREFILL_QUERIES = 128
PREFILL_EXACT_QUERIES = 32
PREFILL_PROGRAMS = 4 * 132
PREFILL_TILE = 2**14
PREFILL_KEYS = 64
PREFILL_STAGES = 3


class Heads(NamedTuple):
    """Query, key or value: a pointer and its strides over rows, heads, positions, head size."""

    at: Any
    b: int
    h: int
    n: int
    d: int


class PerKey(NamedTuple):
    """Numbers `[B, H, width]`: a pointer and its strides."""

    at: Any
    b: int
    h: int
    k: int
    width: int


class Mask(NamedTuple):
    """`[B, H, Q, K]`: a pointer, its strides, and the number that hides, as -inf does."""

    at: Any
    b: int
    h: int
    q: int
    k: int
    lowest: float


class Rows(NamedTuple):
    """The first edited query of each row of the batch."""

    at: Any
    b: int


@triton.jit
def _floor(top):
    return tl.where(top == HIDDEN, 0.0, top)


@triton.jit
def _weight(weight, row, head, at, NEUTRAL: tl.constexpr):
    offset = row * weight.b + head * weight.h + at.to(tl.int64) * weight.k
    return tl.load(weight.at + offset, mask=at < weight.width, other=NEUTRAL).to(tl.float32)


@triton.jit
def _edit(scores, scale, gain, bias, row, head, at):
    """The edited `scores`; `head` and `at` broadcast to their shape."""
    edited = scores
    if scale is not None:
        edited *= _weight(scale, row, head, at, 1.0)
    if gain is not None:
        edited += tl.abs(scores) * _weight(gain, row, head, at, 0.0)
    if bias is not None:
        edited += LOG2E * _weight(bias, row, head, at, 0.0)
    return edited


@triton.jit
def _mask_tile(mask, row, head, query, at, inside):
    """What the mask adds, and whether a key is visible."""
    pointers = mask.at + row * mask.b + head * mask.h + query * mask.q + at.to(tl.int64) * mask.k
    if mask.at.dtype.element_ty == tl.int1:
        visible = tl.load(pointers, mask=inside, other=0).to(tl.int1)
        return tl.zeros(visible.shape, tl.float32), visible
    else:
        added = tl.load(pointers, mask=inside, other=HIDDEN).to(tl.float32)
        return added, added > mask.lowest


@triton.jit
def _hide(scores, mask, row, head, query, at, inside):
    """-inf where a key is not seen: after the edit, since an edited -inf would be NaN."""
    visible = inside
    if mask is not None:
        added, visible = _mask_tile(mask, row, head, query, at, inside)
        scores += LOG2E * added
    return tl.where(visible, scores, HIDDEN)


@triton.jit
def _load(heads, row, head, at, d, limit, SIZE: tl.constexpr, EDGE: tl.constexpr):
    """Positions `at` of one head `[n, BLOCK_D]`, zeros outside."""
    pointers = heads.at + row * heads.b + head * heads.h
    pointers += at.to(tl.int64)[:, None] * heads.n + d.to(tl.int64)[None, :] * heads.d
    if EDGE:
        return tl.load(pointers, mask=(at[:, None] < limit) & (d[None, :] < SIZE), other=0.0)
    elif d.shape[0] != SIZE:
        return tl.load(pointers, mask=d[None, :] < SIZE, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _load_heads(query, row, head, d, SIZE: tl.constexpr):
    """One query of several heads `[n, BLOCK_D]`."""
    pointers = query.at + row * query.b + head[:, None] * query.h
    return tl.load(pointers + d.to(tl.int64)[None, :] * query.d, mask=d[None, :] < SIZE, other=0.0)


@triton.jit
def _edit_and_hide(
    scores, scale, gain, bias, mask, edited, row, head, query, at, inside, EDGE: tl.constexpr
):
    """The definition's order: edit (only where `edited`), then hide."""
    if scale is not None or gain is not None or bias is not None:
        scores = tl.where(edited, _edit(scores, scale, gain, bias, row, head, at), scores)
    if EDGE:
        scores = _hide(scores, mask, row, head, query, at, inside)
    return scores


@triton.jit(do_not_specialize=["keys", "split_keys", "position"])
def _decode(
    query,
    key,
    value,
    mask,
    scale,
    gain,
    bias,
    rows,
    chosen,
    output,
    sums,
    mass,
    scores,
    scaling,
    keys,
    split_keys,
    position,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """One split of the keys, for all query heads of one KV head.

    Grid: splits, B * Hkv. Writes per head and split what it sees `[B * H, splits, SIZE]`, the
    logarithm of its exponentials' sum `[B * H, splits]` and the share of that on the chosen keys;
    and the scores `[B * H, K]`. Padding heads repeat the last one and are not written.
    """
    split = tl.program_id(0)
    splits = tl.num_programs(0)
    row = (tl.program_id(1) // (HEADS // GROUP)).to(tl.int64)
    group = (tl.program_id(1) % (HEADS // GROUP)).to(tl.int64)
    begin = split * split_keys
    end = tl.minimum(begin + split_keys, keys)
    d = tl.arange(0, BLOCK_D)
    edited = True
    if rows is not None:
        edited = position >= tl.load(rows.at + row * rows.b)

    if GROUP == 1:
        # Products and sums, since a dot would need 16 heads. Each of a tile's BLOCK_K places keeps
        # a softmax of its own, so that threads exchange nothing before the end.
        line = row * HEADS + group
        part = line * splits + split
        written = True
        q = tl.load(
            query.at + row * query.b + group * query.h + d.to(tl.int64) * query.d,
            mask=d < SIZE,
            other=0.0,
        ).to(tl.float32)
        tops = tl.full([BLOCK_K], HIDDEN, tl.float32)
        totals = tl.zeros([BLOCK_K], tl.float32)
        shares = tl.zeros([BLOCK_K], tl.float32)
        seens = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
            at = start + tl.arange(0, BLOCK_K)
            k = _load(key, row, group, at, d, end, SIZE, True).to(tl.float32)
            v = _load(value, row, group, at, d, end, SIZE, True).to(tl.float32)
            s = tl.sum(k * q[None, :], axis=1) * scaling
            s = _edit_and_hide(
                s, scale, gain, bias, mask, edited, row, group, 0, at, at < end, True
            )
            if scores is not None:
                tl.store(scores + line * keys + at, s, mask=at < end)
            higher = tl.maximum(tops, s)
            shrink = tl.exp2(tops - _floor(higher))
            p = tl.exp2(s - _floor(higher))
            totals = totals * shrink + p
            if chosen is not None:
                shares = shares * shrink + p * _weight(chosen, row, 0, at, 0.0)
            seens = seens * shrink[:, None] + p[:, None] * v
            tops = higher
        top = tl.max(tops, axis=0)
        shrink = tl.exp2(tops - _floor(top))
        total = tl.sum(totals * shrink, axis=0)
        share = tl.sum(shares * shrink, axis=0)
        seen = tl.sum(seens * shrink[:, None], axis=0) / tl.maximum(total, TINY)
        tl.store(output + part * SIZE + d, seen, mask=d < SIZE)
    else:
        member = tl.arange(0, BLOCK_H)
        head = group * GROUP + tl.minimum(member, GROUP - 1)
        line = row * HEADS + head
        part = line * splits + split
        written = member < GROUP
        # Weights and mask are mostly the same for all heads: then one load serves the whole group.
        whose = head[:, None] if PER_HEAD else 0
        q = _load_heads(query, row, head, d, SIZE)
        top = tl.full([BLOCK_H], HIDDEN, tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        share = tl.zeros([BLOCK_H], tl.float32)
        seen = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
        for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
            at = start + tl.arange(0, BLOCK_K)
            k = _load(key, row, group, at, d, end, SIZE, True)
            v = _load(value, row, group, at, d, end, SIZE, True)
            at = at[None, :]
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
            s = _edit_and_hide(
                s, scale, gain, bias, mask, edited, row, whose, 0, at, at < end, True
            )
            if scores is not None:
                tl.store(scores + line[:, None] * keys + at, s, mask=written[:, None] & (at < end))
            higher = tl.maximum(top, tl.max(s, axis=1))
            shrink = tl.exp2(top - _floor(higher))
            p = tl.exp2(s - _floor(higher)[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            if chosen is not None:
                picked = p * _weight(chosen, row, 0, at, 0.0)
                share = share * shrink + tl.sum(picked, axis=1)
            seen = tl.dot(p.to(v.dtype), v, seen * shrink[:, None], input_precision="ieee")
            top = higher
        seen /= tl.maximum(total, TINY)[:, None]
        tl.store(
            output + part[:, None] * SIZE + d[None, :],
            seen,
            mask=written[:, None] & (d[None, :] < SIZE),
        )
    if sums is not None:
        tl.store(sums + part, top + tl.log2(total), mask=written)
    if chosen is not None:
        tl.store(mass + part, share / tl.maximum(total, TINY), mask=written)


@triton.jit(do_not_specialize=["keys", "splits"])
def _reduce(
    parts,
    sums,
    masses,
    scores,
    output,
    mass,
    row_mean,
    group_means,
    columns,
    keys,
    splits,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What `_decode` left in parts; both tasks in one launch, a second would cost as much again.

    Grid: programs, B. The first HEADS * CHUNKS programs each join one chunk of a head's output; the
    others each turn the scores of BLOCK_K keys, of all heads, into probabilities.
    """
    program = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    if CHUNKS > 0:  # noqa: SIM102 (known when compiling; the inner one is not)
        if program < HEADS * CHUNKS:
            line = row * HEADS + program // CHUNKS
            chunk = program % CHUNKS
            part = line * splits + split
            sum_of = tl.load(sums + part, mask=split < splits, other=HIDDEN)
            share = tl.exp2(sum_of - _floor(tl.max(sum_of, axis=0)))
            share /= tl.maximum(tl.sum(share, axis=0), TINY)
            d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
            seen = tl.load(
                parts + part[:, None] * SIZE + d[None, :],
                mask=(split < splits)[:, None] & (d < SIZE)[None, :],
                other=0.0,
            )
            seen = tl.sum(seen * share[:, None], axis=0)
            tl.store(output + line * SIZE + d, seen, mask=d < SIZE)
            if mass is not None:
                on_chosen = tl.load(masses + part, mask=split < splits, other=0.0)
                tl.store(mass + line, tl.sum(on_chosen * share, axis=0), mask=chunk == 0)
    if scores is not None:  # noqa: SIM102 (likewise)
        if program >= HEADS * CHUNKS:
            group = tl.arange(0, BLOCK_G)[:, None]
            member = tl.arange(0, BLOCK_H)[None, :]
            real = (group < HEADS // GROUP) & (member < GROUP)
            line = row * HEADS + group * GROUP + member
            at = (program - HEADS * CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
            inside = real[:, :, None] & (at < keys)[None, None, :]
            sum_of = tl.load(
                sums + line[:, :, None] * splits + split[None, None, :],
                mask=real[:, :, None] & (split < splits)[None, None, :],
                other=HIDDEN,
            )
            top = _floor(tl.max(sum_of, axis=2))
            total = tl.sum(tl.exp2(sum_of - top[:, :, None]), axis=2)
            pointers = line[:, :, None] * keys + at[None, None, :]
            s = tl.load(scores + pointers, mask=inside, other=HIDDEN)
            p = tl.exp2(s - top[:, :, None]) / tl.maximum(total, TINY)[:, :, None]
            if columns is not None:
                tl.store(columns + pointers, p, mask=inside)
            by_group = tl.sum(p, axis=1)
            if group_means is not None:
                tl.store(
                    group_means + (row * (HEADS // GROUP) + group) * keys + at[None, :],
                    by_group / GROUP,
                    mask=(group < HEADS // GROUP) & (at < keys)[None, :],
                )
            if row_mean is not None:
                mean = tl.sum(by_group, axis=0) / HEADS
                tl.store(row_mean + row * keys + at, mean, mask=at < keys)


@triton.jit(do_not_specialize=["queries", "keys"])
def _tiles_seen(
    mask,
    seen,
    queries,
    keys,
    MASK_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whether a tile of the mask shows any key `[B * MASK_HEADS, query tiles, key tiles]`.

    Grid: key tiles, query tiles, B * MASK_HEADS.
    """
    row = (tl.program_id(2) // MASK_HEADS).to(tl.int64)
    head = (tl.program_id(2) % MASK_HEADS).to(tl.int64)
    here = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    at = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    inside = (here < queries) & (at < keys)
    _, visible = _mask_tile(mask, row, head, here.to(tl.int64), at, inside)
    some = tl.max(tl.max(visible.to(tl.int32), axis=1), axis=0)
    tile = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(seen + tile * tl.num_programs(0) + tl.program_id(0), some.to(tl.int8))


@triton.jit
def _span(seen, step, tiles, BLOCK: tl.constexpr):
    """First tile that is seen, and the one after the last, of those at `seen + step * tile`."""
    first = tiles
    last = 0
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        some = tl.load(seen + tile.to(tl.int64) * step, mask=tile < tiles, other=0) != 0
        first = tl.minimum(first, tl.min(tl.where(some, tile, tiles), axis=0))
        last = tl.maximum(last, tl.max(tl.where(some, tile + 1, 0), axis=0))
    return first, last


@triton.jit
def _sweep(
    seen,
    top,
    total,
    q,
    key,
    value,
    mask,
    scale,
    gain,
    bias,
    row,
    head,
    group,
    here,
    first,
    scaling,
    begin,
    end,
    queries,
    keys,
    SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,
):
    """The running softmax of a tile of queries, taken over the keys from `begin` to `end`."""
    d = tl.arange(0, BLOCK_D)
    for start in tl.range(begin, end, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        k = _load(key, row, group, at, d, keys, SIZE, EDGE)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        s = _scored(
            s, scale, gain, bias, mask, row, head, here, at, first, queries, keys, CAUSAL, EDGE
        )
        higher = tl.maximum(top, tl.max(s, axis=1))
        shrink = tl.exp2(top - _floor(higher))
        p = tl.exp2(s - _floor(higher)[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        v = _load(value, row, group, at, d, keys, SIZE, EDGE)
        seen = tl.dot(p.to(v.dtype), v, seen * shrink[:, None], input_precision="ieee")
        top = higher
    return seen, top, total


@triton.jit
def _scored(
    s,
    scale,
    gain,
    bias,
    mask,
    row,
    head,
    here,
    at,
    first,
    queries,
    keys,
    CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,
):
    """A tile of products, edited and hidden; queries `here` by keys `at`."""
    here = here[:, None]
    at = at[None, :]
    inside = (here < queries) & (at < keys)
    if CAUSAL:
        inside &= at <= here + keys - queries
    edited = here >= first
    return _edit_and_hide(
        s, scale, gain, bias, mask, edited, row, head, here.to(tl.int64), at, inside, EDGE
    )


@triton.jit(do_not_specialize=["first", "queries", "keys"])
def _prefill(
    query,
    key,
    value,
    mask,
    tiles_seen,
    scale,
    gain,
    bias,
    rows,
    output,
    sums,
    scaling,
    first,
    queries,
    keys,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    MASK_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One tile of the queries of one head. Grid: query tiles, B * H.

    Writes the output `[B, Q, H, SIZE]` and, where columns follow, each query's logarithm of the sum
    of its exponentials `[B * H, Q]`. Tiles of keys that every query of the tile sees come first,
    with neither bounds nor mask to look at.
    """
    # The last tile sees the most keys: start with it.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    line = tl.program_id(1).to(tl.int64)
    row = line // HEADS
    head = line % HEADS
    group = head // GROUP
    here = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    q = _load(query, row, head, here, d, queries, SIZE, True)

    begin = 0
    inner = keys
    end = keys
    if CAUSAL:
        inner = tl.minimum(keys, tile * BLOCK_Q + keys - queries + 1)
        end = tl.minimum(keys, (tile + 1) * BLOCK_Q + keys - queries)
    inner = tl.maximum(inner, 0) // BLOCK_K * BLOCK_K
    if mask is not None:
        tiles = tl.cdiv(keys, BLOCK_K)
        masked = (row * MASK_HEADS + head % MASK_HEADS) * tl.num_programs(0) + tile
        begin, last = _span(tiles_seen + masked * tiles, 1, tiles, 128)
        begin *= BLOCK_K
        inner = begin
        end = tl.minimum(end, last * BLOCK_K)

    EDITS: tl.constexpr = scale is not None or gain is not None or bias is not None
    if rows is not None:
        first = tl.load(rows.at + row * rows.b).to(tl.int32)
    seen = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_Q], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    # Methods that edit only the last query would otherwise pay for the edit in every tile.
    plain = (tile + 1) * BLOCK_Q <= first if EDITS else True
    if plain:
        seen, top, total = _sweep(
            seen, top, total, q, key, value, mask, None, None, None, row, head, group, here, first,
            scaling, begin, inner, queries, keys, SIZE, BLOCK_K, BLOCK_D, CAUSAL, False,
        )  # fmt: skip
        seen, top, total = _sweep(
            seen, top, total, q, key, value, mask, None, None, None, row, head, group, here, first,
            scaling, inner, end, queries, keys, SIZE, BLOCK_K, BLOCK_D, CAUSAL, True,
        )  # fmt: skip
    else:
        seen, top, total = _sweep(
            seen, top, total, q, key, value, mask, scale, gain, bias, row, head, group, here, first,
            scaling, begin, inner, queries, keys, SIZE, BLOCK_K, BLOCK_D, CAUSAL, False,
        )  # fmt: skip
        seen, top, total = _sweep(
            seen, top, total, q, key, value, mask, scale, gain, bias, row, head, group, here, first,
            scaling, inner, end, queries, keys, SIZE, BLOCK_K, BLOCK_D, CAUSAL, True,
        )  # fmt: skip

    seen /= tl.maximum(total, TINY)[:, None]
    place = (row * queries + here.to(tl.int64)) * HEADS + head
    tl.store(
        output + place[:, None] * SIZE + d[None, :],
        seen,
        mask=(here < queries)[:, None] & (d < SIZE)[None, :],
    )
    if sums is not None:
        tl.store(sums + line * queries + here, top + tl.log2(total), mask=here < queries)


@triton.jit(do_not_specialize=["first", "queries", "keys"])
def _columns(
    query,
    key,
    mask,
    tiles_seen,
    scale,
    gain,
    bias,
    rows,
    sums,
    columns,
    scaling,
    first,
    queries,
    keys,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    MASK_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """The probabilities of one tile of keys, summed over the queries. Grid: key tiles, B * H."""
    tile = tl.program_id(0)
    line = tl.program_id(1).to(tl.int64)
    row = line // HEADS
    head = line % HEADS
    at = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    k = _load(key, row, head // GROUP, at, d, keys, SIZE, True)

    begin = 0
    end = queries
    if CAUSAL:
        begin = tl.maximum(tile * BLOCK_K - keys + queries, 0)
    if mask is not None:
        tiles = tl.cdiv(queries, BLOCK_Q)
        masked = (row * MASK_HEADS + head % MASK_HEADS) * tiles * tl.num_programs(0) + tile
        some, last = _span(tiles_seen + masked, tl.num_programs(0), tiles, 128)
        begin = tl.maximum(begin, some * BLOCK_Q)
        end = tl.minimum(end, last * BLOCK_Q)
    if rows is not None:
        first = tl.load(rows.at + row * rows.b).to(tl.int32)
    column = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for start in tl.range(begin, end, BLOCK_Q):
        here = start + tl.arange(0, BLOCK_Q)
        q = _load(query, row, head, here, d, queries, SIZE, True)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        s = _scored(
            s, scale, gain, bias, mask, row, head, here, at, first, queries, keys, CAUSAL, True
        )
        sum_of = tl.load(sums + line * queries + here, mask=here < queries, other=0.0)
        column += tl.exp2(s - _floor(sum_of)[:, None])
    tl.store(columns + line * keys + at, tl.sum(column, axis=0), mask=at < keys)


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
    """`reference.attend`, on one device and in one dtype; `rows` that is a tensor lies there too.

    Shapes and meaning are the reference's. No gradient.
    """
    weights = weights or KeyWeights()
    wanted = record or Record()
    queries = query.shape[2]
    first, rows = (
        (0, weights.first_query)
        if isinstance(weights.first_query, Tensor)
        else (weights.first_query, None)
    )
    asked = (wanted.row, wanted.groups, wanted.columns)
    edit: tuple[Tensor | None, ...] = (weights.scale, weights.gain, weights.bias, rows)
    if queries == 1:
        if first > 0:
            edit = (None, None, None, None)
        output, *recorded = torch.ops.sightline.attend_decode(
            query, key, value, mask, *edit, wanted.mass, scaling, 0, *asked
        )
    else:
        output, *recorded = torch.ops.sightline.attend_prefill(
            query, key, value, mask, *edit, wanted.mass, scaling, first, causal, *asked
        )
    left = iter(recorded)
    return output, Recorded(
        *(next(left) if asked else None for asked in (*asked, wanted.mass is not None))
    )


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    rows: Tensor | None,
    chosen: Tensor | None,
    scaling: float,
    position: int,
    row: bool,
    groups: bool,
    columns: bool,
) -> list[Tensor]:
    """One query `[B, H, 1, D]`, number `position` of its call: the output, then what is asked."""
    check(query, key, value)
    batch, heads, _, size = query.shape
    kv_heads, keys = key.shape[1:3]
    output, *recorded = results(query, key, row, groups, columns, chosen is not None)
    left = iter(recorded)
    row_mean, group_means, column, mass = (
        next(left) if asked else None for asked in (row, groups, columns, chosen is not None)
    )
    block_d = power(size, 16)
    block_k = keys_in(DECODE_TILE, DECODE_KEYS, block_d * key.itemsize)
    splits, split_keys = split(keys, batch * kv_heads, block_k)
    stored = row or groups or columns
    scratch: Any = {"device": query.device, "dtype": torch.float32}
    scores = empty((batch, heads, keys), **scratch) if stored else None
    sums = empty((batch, heads, splits), **scratch) if stored or splits > 1 else None
    parts, masses = output, mass
    if splits > 1:
        parts = empty((batch, heads, splits, size), **scratch)
        masses = empty((batch, heads, splits), **scratch) if mass is not None else None
    place = as_mask(mask, batch, heads, 1, keys)
    edit = tuple(as_per_key(weight, batch, heads) for weight in (scale, gain, bias))
    with torch.cuda.device_of(query):
        _decode[(splits, batch * kv_heads)](
            Heads(query, *query.stride()),
            Heads(key, *key.stride()),
            Heads(value, *value.stride()),
            place,
            *edit,
            as_rows(rows, batch),
            as_chosen(chosen, batch),
            parts,
            sums,
            masses,
            scores,
            scaling * LOG2E.value,
            keys,
            split_keys,
            position,
            HEADS=heads,
            GROUP=heads // kv_heads,
            SIZE=size,
            BLOCK_H=power(heads // kv_heads, 16),
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            STAGES=DECODE_STAGES,
            PER_HEAD=any(part is not None and part.h != 0 for part in (place, *edit)),
        )
        if splits == 1 and not stored:
            return [output, *recorded]
        # A program reads the sums of all splits and the scores of its keys, of every head: as many.
        block_s = power(splits)
        block_g, block_h = power(kv_heads), power(heads // kv_heads)
        record_k = max(16, min(128, max(32, block_s), RECORD_TILE // (block_g * block_h)))
        chunk = max(16, min(block_d, REDUCE_TILE // block_s))
        chunks = blocks_of(size, chunk) if splits > 1 else 0
        tiles = blocks_of(keys, record_k) if stored else 0
        _reduce[(heads * chunks + tiles, batch)](
            parts,
            sums,
            masses,
            scores,
            output,
            mass,
            row_mean,
            group_means,
            column,
            keys,
            splits,
            HEADS=heads,
            GROUP=heads // kv_heads,
            SIZE=size,
            CHUNKS=chunks,
            BLOCK_S=block_s,
            BLOCK_D=chunk,
            BLOCK_G=block_g,
            BLOCK_H=block_h,
            BLOCK_K=record_k,
        )
    return [output, *recorded]


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    rows: Tensor | None,
    chosen: Tensor | None,
    scaling: float,
    first: int,
    causal: bool,
    row: bool,
    groups: bool,
    columns: bool,
) -> list[Tensor]:
    """Several queries `[B, H, Q, D]`: the output, then what is asked."""
    check(query, key, value)
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1:3]
    output, *rest = results(query, key, False, False, columns, False)
    column = rest[0] if columns else None
    sums = None
    if columns:
        sums = empty((batch, heads, queries), dtype=torch.float32, device=query.device)
    place = as_mask(mask, batch, heads, queries, keys)
    mask_heads = heads if place is not None and place.h else 1
    block_d = power(size, 16)
    block_k = keys_in(PREFILL_TILE, PREFILL_KEYS, block_d * key.itemsize)
    block_q = PREFILL_QUERIES
    if key.itemsize == 4:
        block_q = PREFILL_EXACT_QUERIES
        block_k = min(block_k, PREFILL_EXACT_QUERIES)
    elif batch * heads * blocks_of(queries, block_q) < PREFILL_PROGRAMS:
        block_q //= 2
    block_q = min(block_q, power(queries, 16))
    tiles, key_tiles = blocks_of(queries, block_q), blocks_of(keys, block_k)
    blocks = {"BLOCK_Q": block_q, "BLOCK_K": block_k}
    shape = {
        "HEADS": heads,
        "GROUP": heads // kv_heads,
        "SIZE": size,
        "MASK_HEADS": mask_heads,
        "BLOCK_D": block_d,
        "CAUSAL": causal,
        "num_warps": 8 if block_q == PREFILL_QUERIES or block_d * key.itemsize > 256 else 4,
        "num_stages": PREFILL_STAGES,
    }
    edit = (
        as_per_key(scale, batch, heads),
        as_per_key(gain, batch, heads),
        as_per_key(bias, batch, heads),
        as_rows(rows, batch),
    )
    numbers = (scaling * LOG2E.value, first, queries, keys)
    with torch.cuda.device_of(query):
        tiles_seen = None
        if mask is not None:
            tiles_seen = empty(
                (batch * mask_heads, tiles, key_tiles), dtype=torch.int8, device=query.device
            )
            _tiles_seen[(key_tiles, tiles, batch * mask_heads)](
                place, tiles_seen, queries, keys, MASK_HEADS=mask_heads, **blocks
            )
        _prefill[(tiles, batch * heads)](
            Heads(query, *query.stride()),
            Heads(key, *key.stride()),
            Heads(value, *value.stride()),
            place,
            tiles_seen,
            *edit,
            output,
            sums,
            *numbers,
            **shape,
            **blocks,
        )
        if columns:
            _columns[(key_tiles, batch * heads)](
                Heads(query, *query.stride()),
                Heads(key, *key.stride()),
                place,
                tiles_seen,
                *edit,
                sums,
                column,
                *numbers,
                **shape,
                **blocks,
            )
    last: list[Tensor] = []
    if row or groups or chosen is not None:
        if first > queries - 1:
            scale = gain = bias = None
        if mask is not None:
            mask = mask[..., -1:, :]
        only = (query[:, :, -1:], key, value, mask, scale, gain, bias, rows, chosen)
        _, *last = decode(*only, scaling, queries - 1, row, groups, False)
    before = row + groups
    return [output, *last[:before], *rest, *last[before:]]


def results(
    query: Tensor, key: Tensor, row: bool, groups: bool, columns: bool, mass: bool
) -> list[Tensor]:
    """The output `[B, Q, H, D]` and what is asked, unwritten."""
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1:3]
    recorded: list[tuple[int, ...]] = [(batch, keys)] * row + [(batch, kv_heads, keys)] * groups
    recorded += [(batch, heads, keys)] * columns + [(batch, heads)] * mass
    return [
        empty((batch, queries, heads, size), dtype=query.dtype, device=query.device),
        *(empty(shape, dtype=torch.float32, device=query.device) for shape in recorded),
    ]


def check(query: Tensor, key: Tensor, value: Tensor) -> None:
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            "query, key and value must have one dtype, "
            f"got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            "query, key and value must have one head size and as many keys as values, "
            f"got {list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
        )


def power(number: int, least: int = 1) -> int:
    """A block's size: a power of two that covers `number`. Triton's own costs microseconds."""
    return max(least, 1 << (number - 1).bit_length())


def blocks_of(number: int, size: int) -> int:
    return -(-number // size)


def keys_in(tile: int, most: int, width: int) -> int:
    """Keys of `width` bytes in a tile; a dot needs at least 16."""
    return min(most, max(16, tile // width))


def split(keys: int, programs: int, block: int) -> tuple[int, int]:
    """(splits, keys per split): enough splits that `programs` of them fill the device."""
    most = min(MAX_SPLITS, max(1, DECODE_PROGRAMS // programs), blocks_of(keys, MIN_SPLIT_KEYS))
    size = blocks_of(blocks_of(keys, most), block) * block
    return blocks_of(keys, size), size


def strides(tensor: Tensor, *shape: int) -> list[int]:
    """The strides that read `tensor` as if it were expanded to `shape`; no view is made."""
    missing = len(shape) - tensor.dim()
    if missing < 0 or any(
        size not in (1, wanted) for size, wanted in zip(tensor.shape, shape[missing:], strict=True)
    ):
        raise ValueError(f"cannot broadcast {list(tensor.shape)} to {list(shape)}")
    return [0] * missing + [
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]


def as_mask(mask: Tensor | None, batch: int, heads: int, queries: int, keys: int) -> Mask | None:
    if mask is None:
        return None
    b, h, q, k = strides(mask, batch, heads, queries, keys)
    lowest = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return Mask(mask, b, h, q, k, lowest)


def as_per_key(weight: Tensor | None, batch: int, heads: int) -> PerKey | None:
    if weight is None:
        return None
    width = weight.shape[-1]
    b, h, k = strides(weight, batch, heads, width)
    return PerKey(weight, b, h, k, width)


def as_chosen(chosen: Tensor | None, batch: int) -> PerKey | None:
    """`[B, W]` bool, as a weight of 1 and 0."""
    if chosen is None:
        return None
    width = chosen.shape[-1]
    b, k = strides(chosen, batch, width)
    return PerKey(chosen, b, 0, k, width)


def as_rows(rows: Tensor | None, batch: int) -> Rows | None:
    return None if rows is None else Rows(rows, *strides(rows, batch))


EDIT = "Tensor? scale, Tensor? gain, Tensor? bias, Tensor? rows, Tensor? chosen, float scaling"
torch.library.define(
    "sightline::attend_decode",
    f"(Tensor query, Tensor key, Tensor value, Tensor? mask, {EDIT}, SymInt position,"
    " bool row, bool groups, bool columns) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "sightline::attend_prefill",
    f"(Tensor query, Tensor key, Tensor value, Tensor? mask, {EDIT}, SymInt first, bool causal,"
    " bool row, bool groups, bool columns) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("sightline::attend_decode", ("cpu", "cuda"), decode)
torch.library.impl("sightline::attend_prefill", ("cpu", "cuda"), prefill)


@torch.library.register_fake("sightline::attend_decode")
def fake_decode(query, key, value, mask, scale, gain, bias, rows, chosen, *rest):
    *_, row, groups, columns = rest
    return results(query, key, row, groups, columns, chosen is not None)


@torch.library.register_fake("sightline::attend_prefill")
def fake_prefill(query, key, value, mask, scale, gain, bias, rows, chosen, *rest):
    *_, row, groups, columns = rest
    return results(query, key, row, groups, columns, chosen is not None)
