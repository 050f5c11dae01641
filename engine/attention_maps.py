"""How much attention the tokens of the question give to each place in the image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.attention.hook import KEYWORD, AttentionPlan, switched
from sightline.engine.attention_plan import branch_attention, middle_layers
from sightline.engine.branch import Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.kv_cache import layers_without_attention
from sightline.engine.prefill import forward_prompt, last_logits
from sightline.engine.prompt_edits import image_columns
from sightline.engine.validation import check_reached
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.token_layout import Layout, locate


def watch(model: Model, branch: Branch, layers: Iterable[int], chosen: Tensor) -> dict[int, Tensor]:
    """Reads a prompt for where it looks; for preparations and contrasts.

    Args:
        layers: Decoder layers to record.
        chosen: `[B, T]` bool, the tokens whose attention is averaged, none in a prefix.

    Returns:
        By layer, the mean over heads and chosen tokens, `[B, T]` float32.
    """
    read = 0 if branch.prefix is None else branch.prefix.length
    block = branch_attention(
        model, branch, (), dict.fromkeys(layers, frozenset({"chosen"})), branch.length
    )
    block.recorder.queried = chosen[:, read:]
    block.recorder.begin(0, branch.length - read)
    plan = AttentionPlan([block])
    given = {**last_logits(model), KEYWORD: plan}
    if "logits_to_keep" in given:  # a number would have some layers read the last query alone
        given["logits_to_keep"] = torch.tensor([-1], device=branch.input_ids.device)
    with switched(model):
        forward_prompt(model, branch, branch.cache(model), given)
    check_reached(model, plan)
    return block.recorder.chosen


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention to one image.

    Args:
        values: `[N]`, of each of its tokens; softmax weights, not made to add up to 1.
        layout: Where the tokens lie in it.
    """

    values: Tensor
    layout: Layout


def question_attention_maps(
    branch: Branch, model: Model, processor: Any, layers: tuple[int, int] | None = None
) -> list[AttentionMap]:
    """For each image of the batch, where the tokens of its row's question look.

    Args:
        branch: With the caller's images.
        layers: (first, first after), whose mean is taken. None: from 40 % to 75 % of the depth.
    """
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    first, after = layers or middle_layers(depth)
    if not 0 <= first < after <= depth:
        raise ValueError(f"layers must be within (0, {depth}), got {(first, after)}")
    blind = layers_without_attention(model.config.get_text_config(decoder=True))
    looking = [layer for layer in range(first, after) if layer not in blind]
    if not looking:
        raise UnsupportedModelError(
            f"none of the layers {first} to {after - 1} attends to the image (they keep a state "
            "in place of keys): ask others with layers=, or use another matcher"
        )
    editor = PromptEditor(processor, model, branch.call.chat_template_kwargs)
    seen = watch(model, branch, looking, editor.question_tokens(branch))
    mean = torch.stack([seen[layer] for layer in looking]).mean(dim=0)
    return [
        AttentionMap(values, layout)
        for row, layouts in enumerate(layouts_by_row(branch, model, processor))
        for values, layout in zip(
            mean[row][branch.image_mask[row]].split([layout.count for layout in layouts]),
            layouts,
            strict=True,
        )
    ]


def layouts_by_row(branch: Branch, model: Model, processor: Any) -> list[list[Layout]]:
    """Where the tokens of each row's images lie in them."""
    return [
        [
            locate(processor, model.config, image, len(columns), branch.call.processor_kwargs)
            for image, columns in zip(images, columns_of, strict=True)
        ]
        for images, columns_of in zip(
            branch.call.images, image_columns(branch, model, processor), strict=True
        )
    ]
