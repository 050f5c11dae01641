"""What attention knows of one branch's keys, and what it was asked to record of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class AttentionRecorder:
    """One branch's keys and records. Lives as long as one call of `generate`.

    Parts read it and never write. Tensors per key have K columns, one per key of the layer at
    hand, padding included, or fewer: what is left out stands at the end.

    Args:
        image_mask: `[R, P]` bool, true on the prompt's image tokens.
        mask: `[R, P]` bool, false on the prompt's padding.
        layers: Number of decoder layers.
        heads, kv_heads: H and Hkv, numbers of query heads and of heads in the cache; None where
            layers differ in them.
        partial: Layers that do not see every key of this call: those with a window that it
            outgrows, or without attention.
        sharing: Layers that attend to another layer's keys, and may get the last query of a
            prompt alone.
        blind: Layers without attention.
        step: Tokens answered so far: 0 while the prompt is read.
        reads_prompt: Whether this forward reads the prompt, and not an answered token.
        queries: Q, the queries of this forward: P in the prompt, then 1. A layer may get the
            latest of them alone.
        removed: Keys that cache evictions have taken out of every layer.
        row: By layer, of the last query of this forward, the mean over heads, `[R, K]`.
        groups: By layer, of the same query, the mean by KV head, `[R, Hkv, K]`.
        mass: By layer, of the same query, the mass on the image by head, `[R, H]`.
        columns: By layer, the sums over all queries before this layer's turn, `[R, H, K]`.
        image_mass: By layer, for each key after the prompt, the mass on the image (of the layer
            `image_mass_layer`, mean over heads) when it was the query, `[R, Hkv, G]`; of the layers
            whose `groups` are kept.
        image_mass_layer: None, unless `image_mass` are to be kept.
        queried: `[R, Q]` bool, queries of this forward that `chosen` is the mean of.
        chosen: By layer, the mean over heads and those queries, `[R, K]`.
    """

    image_mask: Tensor
    mask: Tensor
    layers: int
    heads: int | None = 1
    kv_heads: int | None = 1
    partial: frozenset[int] = frozenset()
    blind: frozenset[int] = frozenset()
    sharing: frozenset[int] = frozenset()
    step: int = 0
    reads_prompt: bool = field(init=False)
    queries: int = 0
    removed: int = 0
    row: dict[int, Tensor] = field(default_factory=dict)
    groups: dict[int, Tensor] = field(default_factory=dict)
    mass: dict[int, Tensor] = field(default_factory=dict)
    columns: dict[int, Tensor] = field(default_factory=dict)
    image_mass: dict[int, Tensor] = field(default_factory=dict)
    image_mass_layer: int | None = None
    queried: Tensor | None = None
    chosen: dict[int, Tensor] = field(default_factory=dict)
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.reads_prompt = self.step == 0  # kept: a compiled forward must not depend on the step

    @property
    def prompt(self) -> int:
        """P, the keys of the prompt, padding included."""
        return self.image_mask.shape[1]

    @property
    def total(self) -> int:
        """Keys of a layer without a window, those of this forward included."""
        return self.prompt + self.step - self.removed

    @property
    def before_image(self) -> Tensor:
        """`[R, P]` bool: tokens before a row's first image, none in a row without image."""
        began = self.image_mask.long().cummax(dim=1).values.bool()
        return ~began & self.mask & self.image_mask.any(dim=1, keepdim=True)

    @property
    def after_image(self) -> Tensor:
        """`[R]`: the place after a row's last image token, P in a row without image."""
        places = torch.arange(1, self.prompt + 1, device=self.image_mask.device)
        last = (places * self.image_mask).amax(dim=1)
        return torch.where(last == 0, self.prompt, last)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once per forward: for what several layers share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def held(self, values: Tensor, keys: int) -> Tensor:
        """Values of the first keys `[R, ..., W]` -> those that a layer of K keys still holds."""
        if not self.partial:
            return values
        gone = max(0, self.total - keys)
        return values[..., gone:] if gone else values

    def begin(self, step: int, queries: int) -> None:
        """Before each forward."""
        self.step, self.reads_prompt, self.queries = step, step == 0, queries
        for records in (self.row, self.groups, self.mass, self.chosen, self._made):
            records.clear()

    def write(self, layer: int, recorded: Mapping[str, Tensor]) -> None:
        """After a layer's attention: what was recorded, by name.

        Where keys are cached compressed, attention has more key-value heads than the cache.
        """
        if "groups" in recorded and self.kv_heads not in (None, recorded["groups"].shape[1]):
            groups = recorded["groups"].unflatten(1, (self.kv_heads, -1)).mean(dim=2)
            recorded = {**recorded, "groups": groups}
        for name in ("row", "groups", "mass", "chosen"):
            if name in recorded:
                getattr(self, name)[layer] = recorded[name]
        if "columns" in recorded:
            before = self.columns.get(layer)
            new = recorded["columns"]
            if before is not None:
                new = new + pad(before, (0, new.shape[-1] - before.shape[-1]))
            self.columns[layer] = new

    def end(self) -> None:
        """After each forward."""
        if self.image_mass_layer is None or self.reads_prompt:
            return
        step = self.mass[self.image_mass_layer].mean(dim=1)
        for layer, groups in self.groups.items():
            own = step[:, None, None].expand(-1, groups.shape[1], 1)
            kept = self.image_mass.get(layer)
            self.image_mass[layer] = own if kept is None else torch.cat([kept, own], dim=-1)

    def widen(self, width: int, copies: int) -> None:
        """The prompt is read: pads it on the left to `width`, repeats each row `copies` times."""
        short = width - self.prompt

        def widened(values: Tensor) -> Tensor:
            return pad(values, (short, 0)).repeat_interleave(copies, dim=0)

        self.image_mask, self.mask = widened(self.image_mask), widened(self.mask)
        self.columns = {layer: widened(values) for layer, values in self.columns.items()}

    def reorder(self, index: Tensor) -> None:
        """Row r goes on as row `index[r]` was; rows of one prompt share its masks."""
        self.columns = {layer: values[index] for layer, values in self.columns.items()}
        self.image_mass = {layer: values[index] for layer, values in self.image_mass.items()}
