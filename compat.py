"""Every private or semi-private name of transformers that the library uses, and nothing else.

A release of transformers that changes one of them breaks this file alone, and
`tests/test_architecture.py` keeps such names out of all others. Imports nothing of the library.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

# Layers of caches: keys and values of each are copied from branch to branch.
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

# Logits processors that `generate` makes of its own arguments.
from transformers.generation import logits_process

# The method of `GenerationMixin` that decodes in a mode, and what it returns.
from transformers.generation.utils import GENERATION_MODES_MAPPING, GenerateDecoderOnlyOutput

# Back ends of attention and of masks by name. The public classes register; they cannot list.
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

# The order of patches in Qwen's towers with windowed layers.
from transformers.vision_utils import get_vision_window_index

__all__ = [
    "ATTENTIONS",
    "MASKS",
    "CausalLMOutputWithPast",
    "DynamicIndexedLayer",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "GenerateDecoderOnlyOutput",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionCacheLayerMixin",
    "LinearAttentionLayer",
    "attention_name",
    "encoded_images",
    "end_tokens",
    "get_vision_window_index",
    "has_attention_interface",
    "is_callers_cache",
    "logits_process",
    "loop_of",
    "new_cache",
    "pad_token",
    "position_ids",
    "reorder_cache",
    "takes_encoded_images",
    "takes_logits_to_keep",
    "tile_grid",
    "without_padding",
]


def loop_of(model: Any, mode: Any) -> Callable[..., Any]:
    """The model class's own decoding loop of a `GenerationMode`; its first argument is a model."""
    return getattr(type(model), GENERATION_MODES_MAPPING[mode])


def encoded_images(
    model: Any, input_ids: Tensor, pixels: Mapping[str, Any], generation_config: Any
) -> Any:
    """Images through the model's encoder, by modality; None where this release does not."""
    prepare = model._maybe_prepare_encoder_kwargs_for_generation
    given = prepare(input_ids, dict(pixels), "input_ids", generation_config)
    return given.get("mm_encoder_outputs")


def takes_encoded_images(model: Any) -> bool:
    """Whether its forward takes images that were encoded before, `mm_encoder_outputs`."""
    return model._supports_mm_encoder_outputs()


def position_ids(model: Any, input_ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Positions as the model counts them, `[1 or B, T]` or `[P, 1 or B, T]`."""
    return model._prepare_position_ids_for_generation(input_ids, given)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether its forward can leave out the logits of all positions but the last."""
    return model._supports_logits_to_keep()


def new_cache(
    model: Any, generation_config: Any, kwargs: dict[str, Any], mode: Any, rows: int, longest: int
) -> None:
    """Puts the cache that `generate` would make for so many rows into `kwargs`."""
    model._prepare_cache_for_generation(generation_config, kwargs, mode, rows, longest)


def is_callers_cache(cache: Any) -> bool:
    """Whether a cache was passed to `generate`, and not made by it."""
    return getattr(cache, "_is_user_defined", False)


def reorder_cache(model: Any, cache: Any, index: Tensor) -> Any:
    """The cache with rows in the order of `index`, by the model's own method where it has one."""
    if hasattr(model, "_reorder_cache"):
        return model._reorder_cache(cache, index)
    cache.reorder_cache(index)
    return cache


def end_tokens(generation_config: Any) -> Tensor | None:
    """Token ids that end an answer, of a config that `generate` has prepared."""
    return generation_config._eos_token_tensor


def pad_token(generation_config: Any) -> Tensor | None:
    """The token id that pads, of a config that `generate` has prepared."""
    return generation_config._pad_token_tensor


def attention_name(config: Any) -> str:
    """The name of the attention back end that a text config is set to."""
    return config._attn_implementation


def has_attention_interface(model: Any) -> bool:
    """Whether its attention is looked up by name, and is handed a forward's keywords."""
    return model._supports_attention_backend


def tile_grid(size: tuple[int, int], pinpoints: Any, side: int) -> tuple[int, int]:
    """Rows and columns of LLaVA-NeXT's and LLaVA-OneVision's tiles for an image (height, width)."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    return get_anyres_image_grid_shape(size, pinpoints, side)


def without_padding(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Tiles' patches `[D, H, W]` without those that pad an image of a size (height, width)."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    return unpad_image(patches, size)
