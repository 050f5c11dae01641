"""The Triton functions of `kernel.attend`: attention with edited scores, for decode and prefill.

`attention/reference.py` defines what they compute; `attention/kernel.py` launches them.

Scores are held in units of log 2 (`score * log2(e)`), because the device has `exp2`; the edit is of
degree one, so only what is added (bias, additive mask) needs the factor too. Nothing seen so far is
a maximum of -inf, which `_floor` replaces before it is subtracted: -inf - -inf would be NaN.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
HIDDEN = tl.constexpr(-math.inf)
TINY = tl.constexpr(1e-30)


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
def decode_kernel(
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
def reduce_kernel(
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
    """Joins the parts of `decode_kernel`; one launch for both tasks, since a second costs as much.

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
def tiles_seen_kernel(
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
def prefill_kernel(
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
def columns_kernel(
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
