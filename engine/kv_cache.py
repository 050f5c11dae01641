"""Each branch's prompt is read into a cache of its own; here they become one cache of all rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sightline.compat import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)
from sightline.model_protocol import Model, UnsupportedModelError

# By what a layer remembers along the prompt to choose keys by (`[B, ..., T, D]`), the method that
# adds to it. Some families bring a layer class of their own.
INDICES = {"indexer_keys": "update_indexer", "idx_keys": "update_index"}
STATES = frozenset(vars(LinearAttentionLayer()))
WINDOW = frozenset(vars(DynamicSlidingWindowLayer(sliding_window=1))) | {
    "prefill_cumulative_length",
    "prefill_keys",
    "prefill_length",
    "prefill_values",
}
KNOWN = STATES | WINDOW | frozenset(vars(DynamicIndexedLayer())) | frozenset(INDICES)
ROOM = 128  # tokens: how much longer a full layer is made


class RoomyLayer(DynamicLayer):
    """A layer with room behind its keys: a token is written there, and nothing is copied.

    `keys` and `values` are views of what is filled, as long as nobody sets them.

    Args:
        most: Tokens that may follow what it is filled with; the room is no larger.
    """

    def __init__(self, most: int):
        super().__init__()
        self.room = max(1, min(ROOM, most))
        self.buffers: tuple[Tensor, ...] = ()
        self.views: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds `[R, H, t, D]`; all keys and all values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, added = self.get_seq_length(), (key_states, value_states)
        after = before + key_states.shape[-2]
        if not self._holds(after):
            held: tuple[Any, ...] = (self.keys, self.values) if before else ()
            self.buffers = tuple(x.new_empty(roomy(x, after + self.room)) for x in added)
            for buffer, values in zip(self.buffers, held, strict=False):
                buffer[..., :before, :] = values
        for buffer, values in zip(self.buffers, added, strict=True):
            buffer[..., before:after, :] = values
        return self._show(after)

    def opened(self, keys: Tensor, values: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Room for an empty layer's first tokens, for the caller to write all of them to.

        Args:
            keys: What one of the rows' branches has, `[B, H, t, D]`; so are the values.
            rows: All rows.
            tokens: Of each row, padding included.
        """
        self.lazy_initialization(keys, values)
        self.buffers = tuple(
            x.new_empty(rows, *roomy(x, tokens + self.room)[1:]) for x in (keys, values)
        )
        return self._show(tokens)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Row r goes on as row `beam_idx[r]` was."""
        length = self.get_seq_length()
        if not self._holds(length):
            super().reorder_cache(beam_idx)
        elif length:
            self.buffers = tuple(buffer[beam_idx.to(buffer.device)] for buffer in self.buffers)
            self._show(length)

    def _holds(self, length: int) -> bool:
        """Whether the buffers have what was cached, and are long enough."""
        shown = (self.keys, self.values)
        are_ours = bool(self.views) and all(a is b for a, b in zip(shown, self.views, strict=True))
        return are_ours and length <= self.buffers[0].shape[-2]

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[..., :length, :] for buffer in self.buffers)
        self.keys, self.values = self.views = keys, values
        return keys, values


def roomy(values: Tensor, length: int) -> tuple[int, ...]:
    """The shape of values `[..., T, D]` made as long."""
    return (*values.shape[:-2], length, values.shape[-1])


def make_room(cache: Any, most: int, longest: int) -> None:
    """Gives an empty cache layers that need no copy per token, where it has such that do.

    Args:
        most: Tokens that may follow the prompt.
        longest: Tokens of prompt and answer that are cached at most, padding included.
    """
    if type(cache) is DynamicCache and not cache.offloading:
        cache.layers = [
            RoomyLayer(most) if keeps_all(layer, longest) else layer for layer in cache.layers
        ]


def scratch_cache(model: Model, begun: Sequence[tuple[Tensor, Tensor]] = ()) -> DynamicCache:
    """A cache that keeps every key of a prompt: a sliding target cuts its own window.

    Raises `ValueError` for layers that keep what is not known how to put together.

    Args:
        begun: Keys and values of each layer that it begins with; without, it is empty. They are
            not copied: a layer lets go of them when it is added to.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for layer in cache.layers:
        unknown = sorted(set(vars(layer)) - KNOWN)
        if unknown:
            raise UnsupportedModelError(
                f"the cache of {type(model).__name__} has layers of {type(layer).__name__}, which "
                f"keep {', '.join(unknown)}: it is not known how those of several branches are put "
                "together, so decode without a decoder"
            )
    cache.layers = [without_window(layer) for layer in cache.layers]
    if begun:
        begin(cache, begun)
    return cache


def begin(cache: Any, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Gives an empty cache of keys alone what it begins with, without a copy."""
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values


def has_windows(config: Any) -> bool:
    """Whether some layers of a model's text model see only so many columns back."""
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    return any(without_window(layer) is not layer for layer in layers)


def layers_with_every_key(config: Any, longest: int) -> tuple[int, ...]:
    """Layers of a text model that see `longest` tokens whole: no shorter window, no state in place
    of keys. One that shares another's keys sees what that sees.
    """
    layers: Any = DynamicCache(config=config).layers
    sources = key_sources(config, len(layers))
    return tuple(n for n, source in enumerate(sources) if keeps_all(layers[source], longest))


def keeps_all(layer: Any, longest: int) -> bool:
    """Whether a layer of a cache keeps keys and values alone, of each of `longest` tokens."""
    window = getattr(layer, "sliding_window", None)
    fits = window is not None and longest <= window
    return type(without_window(layer) if fits else layer) is DynamicLayer


def key_sources(config: Any, count: int) -> list[int]:
    """Of each layer of a text model the one whose keys it attends to: itself, or an earlier one."""
    kinds = getattr(config, "layer_types", None) or [None] * count
    sources: list[int] = []
    latest: dict[Any, int] = {}
    for layer, kind in zip(range(count), kinds, strict=True):
        if layer not in layers_that_share_keys(config):
            latest[kind] = layer
        sources.append(latest[kind])
    return sources


def layers_that_share_keys(config: Any) -> frozenset[int]:
    """Layers of a text model that attend to the keys of an earlier one of their kind."""
    modes = getattr(config, "kv_sharing_modes", None) or ()
    return frozenset(layer for layer, mode in enumerate(modes) if mode == "reuse")


def layers_that_keep_keys(model: Model) -> bool:
    """Whether all layers keep keys and values alone, so that many tokens can be read at once."""
    layers = scratch_cache(model).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def layers_without_attention(config: Any) -> frozenset[int]:
    """Layers of a text model that keep a state in place of keys, or nothing at all.

    A layer that attends to another's keys keeps nothing either, and is none of these.
    """
    made: Any = DynamicCache(config=config).layers
    layers = enumerate(made)
    # Of a new cache's layers only those that never keep anything need no first token.
    keyless = {n for n, layer in layers if not hasattr(layer, "keys") or layer.is_initialized}
    return frozenset(keyless) - layers_that_share_keys(config)


def without_window(layer: Any) -> Any:
    """The same layer, or one that keeps the same of every token in place of a window."""
    if isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer


def check_layers(cache: Any, model: Model) -> None:
    """Raises `ValueError` if a caller's own cache cannot keep what the model's layers keep."""
    methods = (*INDICES.values(), "update_conv_state", "update_recurrent_state")
    for index, layer in enumerate(scratch_cache(model).layers):
        given = cache.layers[index] if index < len(cache.layers) else DynamicLayer()
        if any(hasattr(layer, method) and not hasattr(given, method) for method in methods):
            raise ValueError(
                f"layer {index} of {type(model).__name__} needs a {type(layer).__name__}, and "
                f"past_key_values has a {type(given).__name__} for it: make it with "
                "config=model.config"
            )


def cached_heads(cache: Any) -> int | None:
    """Heads that a filled cache has keys of, fewer than a config says where keys are compressed.

    None where layers differ in it.
    """
    filled = [layer.keys for layer in cache.layers if getattr(layer, "keys", None) is not None]
    heads = {keys.shape[1] for keys in filled}
    return heads.pop() if len(heads) == 1 else None


def fill(target: Any, caches: Sequence[Any], stack: Callable[..., Tensor], copies: int) -> None:
    """Writes the branches' prompt caches into the target, layer by layer, freeing them.

    Args:
        target: An empty cache of all rows.
        caches: Of each branch, B rows.
        stack: `(values, rows_dim, prompt_dim, into) -> values`, of all branches and all copies.
        copies: Rows per prompt.
    """
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        if isinstance(layers[0], LinearAttentionCacheLayerMixin):
            fill_states(target.layers[index], layers, copies)
        if getattr(layers[0], "keys", None) is not None:
            fill_keys(target, index, layers, stack, copies)
        fill_indices(target, index, layers, stack)


def fill_keys(
    target: Any, index: int, layers: tuple[Any, ...], stack: Callable[..., Tensor], copies: int
) -> None:
    """Keys and values, copied once where the target has room of its own."""
    keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
    for layer in layers:
        layer.keys = layer.values = None
    into = target.layers[index] if index < len(target.layers) else None
    if isinstance(into, RoomyLayer):
        rows = copies * sum(len(own) for own in keys)
        tokens = max(own.shape[2] for own in keys)
        opened = into.opened(keys[0], values[0], rows, tokens)
        for own, place in zip((keys, values), opened, strict=True):
            stack(own, prompt_dim=2, into=place)
    else:
        target.update(stack(keys, prompt_dim=2), stack(values, prompt_dim=2), index)


def fill_indices(
    target: Any, index: int, layers: tuple[Any, ...], stack: Callable[..., Tensor]
) -> None:
    """What a sparse layer chooses keys by: indexer keys, and the positions that turn them."""
    for name, method in INDICES.items():
        if getattr(layers[0], name, None) is not None:
            update = getattr(target.layers[index], method)
            update(stack([getattr(layer, name) for layer in layers], prompt_dim=-2))
    positions = [getattr(layer, "indexer_position_ids", None) for layer in layers]
    if positions[0] is not None:  # [P, B, T]
        target.layers[index].indexer_position_ids = stack(positions, rows_dim=1, prompt_dim=2)


def fill_states(into: Any, layers: tuple[Any, ...], copies: int) -> None:
    """Linear-attention states have no prompt dimension: rows are stacked as they are."""

    def rows(states: list[Tensor]) -> Tensor:
        return torch.cat([s.repeat_interleave(copies, dim=0) for s in states])

    for i in range(layers[0].number_of_states):
        if layers[0].is_conv_states_initialized[i]:
            into.update_conv_state(rows([layer.conv_states[i] for layer in layers]), i)
        if layers[0].is_recurrent_states_initialized[i]:
            into.update_recurrent_state(rows([layer.recurrent_states[i] for layer in layers]), i)
