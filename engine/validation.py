"""What branches cannot be decoded with: checks raise `ValueError` and name the way out.

One only warns, as `generate` decodes such prompts too.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation import (
    GenerationMode,
)

from sightline.attention.hook import AttentionPlan
from sightline.compat import DynamicLayer, attention_name, takes_encoded_images
from sightline.engine.branch import PIXELS, Branch, image_mask
from sightline.engine.kv_cache import RoomyLayer, layers_that_keep_keys
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.features import token_ids
from sightline.vision.images import are_none


def is_text_only(
    model: Model,
    input_ids: Tensor,
    images: Any,
    pixels: Mapping[str, Any],
    model_kwargs: Mapping[str, Any],
) -> bool:
    """Whether no prompt of a batch has an image or a video, and none came beside them."""
    check_vision_language(model)
    encoded = model_kwargs.get("mm_encoder_outputs") or {}
    came = [*(pixels.get(name) for name in PIXELS), *encoded.values()]
    has_tokens = bool(image_mask(input_ids, model.config).any())
    return not has_tokens and are_none(images) and all(value is None for value in came)


def check_vision_language(model: Model) -> None:
    """Raises `ValueError` unless the model takes encoded images by placeholder tokens."""
    if not takes_encoded_images(model) or not token_ids(
        model.config, ("image_token_id", "video_token_id")
    ):
        raise UnsupportedModelError(
            f"decoders need a vision-language model whose images stand in the prompt as "
            f"placeholder tokens, got {type(model).__name__}"
        )


SUPPORTED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)


def check_call(
    model: Model, generation_config: Any, mode: Any, token_streamer: Any, model_kwargs: Mapping
) -> None:
    """Raises `ValueError` for what branches cannot be decoded with."""
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"decoders work on decoder-only vision-language models, got {type(model).__name__}, "
            "an encoder-decoder model"
        )
    if mode not in SUPPORTED_MODES:
        raise ValueError(
            f"generation mode {mode.value} cannot hold branches: use greedy, sampling, beam search "
            "or beam sampling"
        )
    if generation_config.use_cache is False:
        raise ValueError("use_cache=False would lose the branches' state: leave the cache on")
    if any(m.training and getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ValueError(
            "gradient checkpointing in training mode turns the cache off, which would lose the "
            "branches' state: call model.eval() before generate"
        )
    if generation_config.prefill_chunk_size is not None:
        raise ValueError("prefill_chunk_size is not supported: branches are prefilled whole")
    if token_streamer is not None and generation_config.num_beams > 1:
        raise ValueError("token_streamer cannot follow beam search: set num_beams=1")
    if model_kwargs.get("inputs_embeds") is not None:
        raise UnsupportedModelError(
            "decoders find images by their tokens and need input_ids, got inputs_embeds: pass "
            "the processor's output to generate unchanged. A model whose own generate makes "
            "inputs_embeds of it (BLIP-2, InstructBLIP) cannot be decoded with branches"
        )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"past_key_values already holds {int(cache.get_seq_length())} tokens of one branch: "
            "start each call with an empty cache"
        )


def check_padding(mask: Tensor) -> None:
    """Raises `ValueError` for prompts `[B, T]` that end in padding."""
    padded = torch.nonzero(mask[:, -1] == 0)[:, 0].tolist()
    if padded:
        raise ValueError(
            "prompts must be padded on the left, as answers go on behind their last column, and "
            f"attention_mask ends in 0 in rows {padded}: call the processor with "
            'padding_side="left"'
        )


def check_audio(model: Model, model_kwargs: Mapping) -> None:
    """Raises `ValueError` for audio, which branches and questions of their own would not get."""
    encode = getattr(model.base_model, "get_audio_features", None)
    names = () if encode is None else inspect.signature(encode).parameters
    heard = [name for name in names if model_kwargs.get(name) is not None]
    if heard:
        raise ValueError(
            f"this decoder compares prompts by their images, and this one has audio "
            f"({', '.join(heard)}), which it cannot give to each of them: leave the audio out, or "
            "use a decoder of one prompt (VAF, DoLa, DeCo, VASparse)"
        )


def warn_of_two_starts(branch: Branch, model: Model) -> None:
    """Warns of prompts with two tokens that begin a sequence: the template's, and the tokenizer's.

    A model has never seen the second one, and answers by it.
    """
    start = getattr(model.config.get_text_config(decoder=True), "bos_token_id", None)
    if start is None or branch.length < 2:
        return
    first = branch.attention_mask.long().argmax(dim=1, keepdim=True)
    both = torch.cat([first, first + 1], dim=1).clamp(max=branch.length - 1)
    if bool((branch.input_ids.gather(1, both) == start).all(dim=1).any()):
        warnings.warn(
            "the prompt begins with two tokens that begin a sequence, one by the chat template and "
            "one by the tokenizer: tokenize what a template wrote with add_special_tokens=False, "
            "or use sightline.chat.prompt_inputs",
            stacklevel=2,
        )


def check_outputs(model: Model, generation_config: Any, is_edited: bool) -> None:
    """Raises `ValueError` for attention that was asked for and cannot be given.

    Args:
        is_edited: Whether the call's attention is edited or recorded, which holds no matrix.
    """
    if not wants(generation_config, "output_attentions"):
        return
    instead = (
        "Ask for where the model looked in the image by output_image_attention=True, or leave "
        "output_attentions out"
    )
    if is_edited:
        raise ValueError(
            "output_attentions cannot be given for a decoder that edits or records attention: "
            f"that never holds the whole matrix. {instead}"
        )
    attention = attention_name(model.config.get_text_config(decoder=True))
    if attention != "eager":
        raise ValueError(
            f"output_attentions needs eager attention, and this model uses {attention!r}, which "
            f'gives none: load it with attn_implementation="eager". {instead}'
        )


def wants(generation_config: Any, output: str) -> bool:
    """Whether an output of this name was asked for and will be returned."""
    return bool(generation_config.return_dict_in_generate and getattr(generation_config, output))


def check_image_attention(asked: bool | tuple[int, int], generation_config: Any) -> None:
    """Raises `ValueError` unless what was looked at can be handed out."""
    if asked and not generation_config.return_dict_in_generate:
        raise ValueError(
            "output_image_attention is returned beside the tokens: add return_dict_in_generate=True"
        )


def check_images(expert: Branch, needs_pixels: bool) -> None:
    """Raises `ValueError` unless prompt and images are what contrasts need."""
    if not expert.image_mask.any():
        raise ValueError(
            "an image came, or is asked about, and the prompt holds no image token: build it with "
            "the processor's chat template and an image"
        )
    if not expert.features:
        raise ValueError(
            "the prompt holds image tokens but no pixel_values came: pass the processor's whole "
            "output to generate"
        )
    if needs_pixels and not expert.pixels:
        raise ValueError(
            "this decoder edits the image and needs pixel_values, got pre-encoded images: pass "
            "the processor's output to generate unchanged"
        )


def check_reusable(model: Model, branches: list[Branch]) -> None:
    """Raises `ValueError` unless some branch's prompt is the same whatever the image."""
    if all(branch.features for branch in branches):
        raise ValueError(
            "prompts without images are what can be reused, and every branch of this decoder "
            "sees one: use the decoder by itself"
        )
    if not layers_that_keep_keys(model):
        raise UnsupportedModelError(
            f"layers of {type(model).__name__} keep more than keys and values, which is not known "
            "how to reuse: use the decoder by itself"
        )


def check_gated(model: Model, branches: list[Branch]) -> None:
    """Raises `ValueError` unless branches can catch up by several tokens at once."""
    if any(branch.attention_edits for branch in branches[1:]):
        raise ValueError(
            "a gate cannot leave branches behind whose attention is edited token by token (SID): "
            "use the decoder without a gate"
        )
    if not layers_that_keep_keys(model):
        raise UnsupportedModelError(
            "a gate leaves branches behind, which catch up by several tokens at once, and layers "
            f"of {type(model).__name__} keep more than keys and values: use the decoder without a "
            "gate"
        )


def check_cuttable(cache: Any) -> None:
    """Raises `ValueError` unless keys can leave the cache between two steps."""
    kinds = {type(layer) for layer in cache.layers} - {DynamicLayer, RoomyLayer}
    fixed = sorted(kind.__name__ for kind in kinds)
    if fixed or type(cache) is not DynamicCache:
        is_models = type(cache) is DynamicCache  # its layers are those of the model's config
        raise (UnsupportedModelError if is_models else ValueError)(
            f"keys can only leave a DynamicCache of full-attention layers, and this call has "
            f"{', '.join(fixed) or type(cache).__name__}: leave cache_implementation unset, use "
            "a model without sliding-window layers, or turn the selection off"
        )


def check_capacity(cache: Any, longest: int) -> None:
    """Raises `ValueError` if a caller's own cache is too short for the longest branch."""
    capacity = cache.get_max_length() if cache.layers else -1
    if cache.is_compileable and 0 <= capacity < longest:
        raise ValueError(
            f"past_key_values has room for {capacity} tokens and the longest branch needs "
            f"{longest}: make it larger, or let generate make it (cache_implementation='static')"
        )


def check_cached(cache: Any, tokens: int) -> None:
    """Raises `ValueError` if a layer that keeps every key holds fewer than it was given."""
    for number, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, RoomyLayer) or not layer.is_initialized:
            continue
        if layer.get_seq_length() < tokens:
            raise ValueError(
                f"layer {number} of the cache holds {layer.get_seq_length()} of {tokens} tokens: "
                "hooks of another library (such as kvpress's) shorten it, and branches need every "
                "key. Take the hooks off, or generate without a decoder"
            )


def check_reached(model: Model, plan: AttentionPlan) -> None:
    """Raises `ValueError` if a forward's attention never saw what was to be edited."""
    recorder = plan.blocks[0].recorder
    missed = sorted(set(range(recorder.layers)) - recorder.blind - plan.reached)
    if missed:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not hand forward keywords down to the attention of "
            f"layers {missed}, so nothing would be recalibrated there: use a decoder without "
            "attention edit (VCD, VDD)"
        )
