"""`reference.attend`, fused: what `attention/reference.py` defines, in Triton, for CUDA.

Imported where it is used: importing it registers the ops `sightline::attend_decode` and
`sightline::attend_prefill`, which have fake implementations and never wait for the device, so that
they may be compiled and captured in a graph. There is no backward. The Triton functions are in
`attention/triton_kernels.py`.
"""

from typing import Any

import torch
from torch import Tensor, empty

from sightline.attention.reference import KeyWeights, Record, Recorded
from sightline.attention.triton_kernels import (
    LOG2E,
    Heads,
    Mask,
    PerKey,
    Rows,
    columns_kernel,
    decode_kernel,
    prefill_kernel,
    reduce_kernel,
    tiles_seen_kernel,
)

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
        decode_kernel[(splits, batch * kv_heads)](
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
        reduce_kernel[(heads * chunks + tiles, batch)](
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
            tiles_seen_kernel[(key_tiles, tiles, batch * mask_heads)](
                place, tiles_seen, queries, keys, MASK_HEADS=mask_heads, **blocks
            )
        prefill_kernel[(tiles, batch * heads)](
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
            columns_kernel[(key_tiles, batch * heads)](
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
