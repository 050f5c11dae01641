"""What of a model's attention a call edits or records: one stream for each branch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import DynamicCache

from sightline.attention.base import CacheEviction
from sightline.attention.hook import BranchAttention, RowGroup, can_switch, row_groups
from sightline.attention.recorder import AttentionRecorder
from sightline.engine.branch import Branch
from sightline.engine.kv_cache import (
    RoomyLayer,
    layers_that_share_keys,
    layers_with_every_key,
    layers_without_attention,
)
from sightline.model_protocol import Model

MIDDLE = (0.4, 0.75)  # of the depth: the layers that read the image for the answer

# From how many spared bytes on, of one layer's keys and values, branches are read one by one: on a
# CPU, where attention is slow; elsewhere what is read in the time of a few launches (estimated).
SPARED = {"cpu": 2**20}
SPARED_ELSEWHERE = 2**26


def separate(
    model: Model, blocks: Sequence[BranchAttention], lengths: Sequence[int], cache: Any
) -> tuple[RowGroup, ...]:
    """How the branches' answered tokens are read one after another; empty: in one call.

    Args:
        blocks: One stream per branch, whose masks have the rows of its prompt.
        lengths: Of the branches' prompts, which stand padded to the longest in the cache.
        cache: The call's.
    """
    if type(cache) is not DynamicCache or not can_switch(model):
        return ()
    if not all(type(layer) is RoomyLayer for layer in cache.layers):
        return ()
    found = row_groups(blocks, lengths)
    columns = sum(group.blocks * spared(group, found, max(lengths)) for group in found)
    bytes_spared = columns * len(blocks[0].recorder.mask) * key_bytes(model)
    least = SPARED.get(model.device.type, SPARED_ELSEWHERE)
    return found if len(found) > 1 and bytes_spared >= least else ()


def spared(group: RowGroup, all_groups: Sequence[RowGroup], width: int) -> int:
    """Columns of its rows that are not read, or not by edited attention, when it is by itself."""
    is_mixed = not all(other.is_idle for other in all_groups)
    return width if is_mixed and group.is_idle else group.start


def key_bytes(model: Model) -> int:
    """Of one token's key and value in one layer, where all heads are kept as they are."""
    config = model.config.get_text_config(decoder=True)
    heads = shared_number(config, "num_attention_heads") or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (
        2 * (shared_number(config, "num_key_value_heads", heads) or 1) * size * model.dtype.itemsize
    )


def branch_attention(
    model: Model,
    branch: Branch,
    cache_evictions: tuple[CacheEviction, ...],
    records: Mapping[int, frozenset[str]],
    longest: int,
) -> BranchAttention:
    """A branch's keys, edits and records, checked against the model and the prompt.

    Args:
        longest: Tokens of prompt and answer that are read at most, padding included.
    """
    config = model.config.get_text_config(decoder=True)
    depth = config.num_hidden_layers
    heads = shared_number(config, "num_attention_heads")
    recorder = AttentionRecorder(
        image_mask=branch.image_mask,
        mask=branch.attention_mask.bool(),
        layers=depth,
        heads=heads,
        kv_heads=shared_number(config, "num_key_value_heads", heads),
        partial=frozenset(range(depth)) - set(layers_with_every_key(config, longest)),
        blind=layers_without_attention(config),
        sharing=layers_that_share_keys(config),
    )
    asked = dict(records)
    for part in (*branch.attention_edits, *cache_evictions):
        part.check(recorder)
        for layer, names in part.records(recorder).items():
            if "image_mass" in names:
                recorder.image_mass_layer = layer
                names = names - {"image_mass"} | {"mass"}
            asked[layer] = asked.get(layer, frozenset()) | names
    return BranchAttention(recorder, branch.attention_edits, asked)


def shared_number(config: Any, name: str, otherwise: int | None = None) -> int | None:
    """What all layers of a text model have of `name`; None where they differ."""
    layers = getattr(config, "per_layer_config", None) or [config]
    numbers = {getattr(layer, name, None) or otherwise for layer in layers}
    return numbers.pop() if len(numbers) == 1 else None


def recording(block: BranchAttention, layers: Iterable[int], name: str) -> BranchAttention:
    """The same stream, which also keeps `name` of these layers."""
    asked = dict(block.asked or {})
    for layer in layers:
        asked[layer] = asked.get(layer, frozenset()) | {name}
    return replace(block, asked=asked)


def image_attention_layers(
    recorder: AttentionRecorder, asked: bool | tuple[int, int]
) -> tuple[int, ...]:
    """The layers whose attention to the image is shown, among those that see every key.

    Those asked for, or the middle ones; where no middle one sees every key, all that do.
    """
    depth = recorder.layers
    first, after = middle_layers(depth) if isinstance(asked, bool) else asked
    if not 0 <= first < after <= depth:
        raise ValueError(
            f"output_image_attention is True or (first layer, first after) within (0, {depth}), "
            f"got {asked}"
        )
    whole = [layer for layer in range(depth) if layer not in recorder.partial]
    chosen = [layer for layer in whole if first <= layer < after]
    if not chosen and asked is True:
        chosen = whole
    if not chosen:
        raise ValueError(
            "output_image_attention needs a layer that sees every key, and none of those asked "
            f"for does: layers {whole} do"
        )
    return tuple(chosen)


def middle_layers(depth: int) -> tuple[int, int]:
    """(first, first after) of the layers that read the image for the answer."""
    return int(MIDDLE[0] * depth), max(1, int(MIDDLE[1] * depth))
