"""What one answer is conditioned on: a prompt and the images in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sightline.attention.base import AttentionEdit
from sightline.engine.kv_cache import scratch_cache
from sightline.model_protocol import Model
from sightline.vision.features import (
    PLACEHOLDERS,
    is_one_of,
    select_rows,
    token_ids,
)

PIXELS = (
    "pixel_values",
    "pixel_values_images",
    "pixel_values_local",
    "pixel_values_videos",
    "high_res_pixel_values",
)

# Everything that transformers' `get_image_features` and `get_video_features` take. `generate`
# removes the lot once it has encoded the images, unless a strategy's signature names it.
ENCODER_INPUTS = (
    *PIXELS,
    "batch_num_images",
    "downsample_mode",
    "image_grid_hw",
    "image_grid_thw",
    "image_grids",
    "image_merge_sizes",
    "image_position_ids",
    "image_sizes",
    "image_token_pooling",
    "interpolate_pos_encoding",
    "num_frames_per_video",
    "num_local_patches",
    "patches_grid",
    "pixel_attention_mask",
    "pixel_mask",
    "qformer_attention_mask",
    "qformer_input_ids",
    "spatial_shapes",
    "target_sizes",
    "target_sizes_videos",
    "tile_fine_mask",
    "video_grid_thw",
    "video_grids",
    "video_merge_sizes",
    "video_position_ids",
    "video_token_pooling",
    "vision_aspect_ratio",
    "vision_feature_layer",
    "vision_feature_layers",
    "vision_feature_select_strategy",
)

# What a video's positions are made of, besides its grid: seconds from one step to the next.
POSITION_INPUTS = ("second_per_grid_ts", "video_second_per_grid")


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a branch's first columns, read once for all that begin with them.

    Args:
        layers: Keys and values of each layer, `[B, Hkv, W, D]` each.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """W, padding included."""
        return self.layers[0][0].shape[2]

    def rows(self, index: Tensor) -> "Prefix":
        return Prefix(tuple((keys[index], values[index]) for keys, values in self.layers))


@dataclass(frozen=True)
class Call:
    """What `generate` was asked for, besides the prompt.

    Args:
        images: Of each row, in the order of its prompt; empty where the caller gave none.
        generation_config: As `generate` prepared it.
        processor: The model's own; None where the caller gave none.
        chat_template_kwargs: What the prompt's chat template was given besides the messages.
        processor_kwargs: The arguments that it made the prompt with.
    """

    images: tuple[tuple[Any, ...], ...] = ()
    generation_config: Any = None
    processor: Any = field(default=None, repr=False)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Branch:
    """One block of B rows of the ensemble.

    Args:
        input_ids: `[B, T]`, ending in the last column. Padding stands on the left, and, where a
            prefix ends, also between it and the rest.
        attention_mask: `[B, T]`, 1 on tokens and 0 on padding.
        image_mask: `[B, T]` bool, true on the tokens that images and videos fill.
        position_ids: `[B, T]`, or `[P, B, T]` where positions have P parts (M-RoPE). None: those
            that the model gives these tokens.
        aligned: Further tensors that run along the prompt, `[B, T, ...]` (token types).
        features: Encoded images by modality, as in transformers' `mm_encoder_outputs`; empty for
            a branch that sees none. None: to be encoded from `pixels`.
        pixels: The processor's images and their companions; empty where no part asked for them.
        attention_edits: What its attention weighs more or less.
        prefix: Its first columns, where they were read before.
        notes: What preparations leave to rules, one entry per row.
        call: What the caller asked for.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    position_ids: Tensor | None = None
    aligned: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Any] | None = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    attention_edits: tuple[AttentionEdit, ...] = ()
    prefix: Prefix | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    call: Call = Call()

    @property
    def length(self) -> int:
        """T, padding included."""
        return self.input_ids.shape[1]

    def rows(self, index: Tensor, config: Any) -> "Branch":
        """The chosen rows, in the order of `index`, with their images."""
        positions, chosen = self.position_ids, index.tolist()
        images = self.call.images
        return replace(
            self,
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            image_mask=self.image_mask[index],
            position_ids=None if positions is None else positions[..., index, :],
            aligned={name: values[index] for name, values in self.aligned.items()},
            features=self.features and select_rows(self.features, self.input_ids, config, chosen),
            pixels={},
            prefix=None if self.prefix is None else self.prefix.rows(index),
            notes={name: values[index] for name, values in self.notes.items()},
            call=replace(self.call, images=tuple(images[row] for row in chosen) if images else ()),
        )

    def cache(self, model: Model) -> Any:
        """To read the prompt into: it holds what was read of it before, the prefix."""
        return scratch_cache(model, () if self.prefix is None else self.prefix.layers)

    def texts(self) -> list[tuple]:
        """Of each row all that its keys depend on, where it has no image: tokens, places, types.

        Padding is among it.
        """
        assert self.position_ids is not None, "a completed branch has positions"
        positions = self.position_ids.reshape(-1, *self.input_ids.shape)
        read = (self.input_ids, self.attention_mask, *positions, *self.aligned.values())
        rows = zip(*(values.flatten(1).tolist() for values in read), strict=True)
        return [tuple(map(tuple, row)) for row in rows]

    def distinct(self, config: Any) -> tuple["Branch", Tensor]:
        """One of each kind of equal rows, and `[B]`: which of them each row is.

        Rows are equal when their keys must be: same tokens, places and types. Where images or a
        prefix may tell rows apart, each is of a kind of its own.
        """
        count = len(self.input_ids)
        every = torch.arange(count, device=self.input_ids.device)
        if self.features or self.prefix is not None or count == 1:
            return self, every
        kinds: dict[tuple, int] = {}
        kind_of = [kinds.setdefault(row, len(kinds)) for row in self.texts()]
        if len(kinds) == count:
            return self, every
        firsts = [kind_of.index(kind) for kind in range(len(kinds))]
        return self.rows(every.new_tensor(firsts), config), every.new_tensor(kind_of)

    def with_pixels(self, edit: Callable[[str, Tensor], Tensor]) -> "Branch":
        """The same prompt with other images: `edit(name, pixels)` for each tensor of pixels."""
        pixels = {
            name: edit(name, value) if name in PIXELS else value
            for name, value in self.pixels.items()
        }
        return replace(self, pixels=pixels, features=None)

    def columns(self) -> list[list[int]]:
        """By row, the columns that hold tokens and no padding."""
        return [
            [column for column, is_kept in enumerate(mask) if is_kept]
            for mask in self.attention_mask.tolist()
        ]


def image_mask(input_ids: Tensor, config: Any) -> Tensor:
    """`[B, T]` bool, true on placeholder tokens of images and videos."""
    return is_one_of(input_ids, token_ids(config, PLACEHOLDERS))
