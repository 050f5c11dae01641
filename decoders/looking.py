"""Where a model looks in its pictures while it reads the question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sightline.chat import input_device
from sightline.decoders.asking import Chat
from sightline.decoders.branch import ENCODER_INPUTS, Branch
from sightline.decoders.caches import layers_without_attention
from sightline.decoders.ensemble import encode, watch
from sightline.decoders.features import Features, picture_lengths
from sightline.decoders.geometry import Layout, locate
from sightline.decoders.streams import middle_layers


@dataclass(frozen=True, eq=False)
class Look:
    """Attention to one picture.

    Args:
        values: `[N]`, of each of its tokens; softmax weights, not made to add up to 1.
        layout: Where the tokens lie in it.
    """

    values: Tensor
    layout: Layout


def question_looks(
    branch: Branch, model: Any, processor: Any, layers: tuple[int, int] | None = None
) -> list[Look]:
    """For each picture of the batch, where the tokens of its row's question look.

    Args:
        branch: With the caller's pictures.
        layers: (first, first after), whose mean is taken. None: from 40 % to 75 % of the depth.
    """
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    first, after = layers or middle_layers(depth)
    if not 0 <= first < after <= depth:
        raise ValueError(f"layers must be within (0, {depth}), got {(first, after)}")
    blind = layers_without_attention(model.config.get_text_config(decoder=True))
    looking = [layer for layer in range(first, after) if layer not in blind]
    if not looking:
        raise ValueError(
            f"none of the layers {first} to {after - 1} attends to the picture (they keep a state "
            "in place of keys): ask others with layers=, or use another matcher"
        )
    seen = watch(model, branch, looking, Chat(processor, model).question_tokens(branch))
    mean = torch.stack([seen[layer] for layer in looking]).mean(dim=0)
    return [
        Look(values, layout)
        for row, layouts in enumerate(layouts_by_row(branch, model, processor))
        for values, layout in zip(
            mean[row][branch.image_mask[row]].split([layout.count for layout in layouts]),
            layouts,
            strict=True,
        )
    ]


def layouts_by_row(branch: Branch, model: Any, processor: Any) -> list[list[Layout]]:
    """Where the tokens of each row's pictures lie in them."""
    return [
        [
            locate(processor, model.config, picture, len(columns))
            for picture, columns in zip(pictures, images, strict=True)
        ]
        for pictures, images in zip(
            branch.call.pictures, branch.images(model, processor), strict=True
        )
    ]


def picture_inputs(pictures: Sequence[Image.Image], processor: Any, model: Any) -> dict[str, Any]:
    """What the model's encoder takes, for pictures in the order of their prompts."""
    prepared = processor.image_processor(images=list(pictures), return_tensors="pt")
    return {
        name: value.to(input_device(model), model.dtype if value.is_floating_point() else None)
        for name, value in prepared.items()
        if name in ENCODER_INPUTS
    }


def encoded(
    pictures: Sequence[Image.Image], branch: Branch, processor: Any, model: Any
) -> Features:
    """Pictures through the model's encoder; `ValueError` unless they come out one by one."""
    features = encode(branch, picture_inputs(pictures, processor, model), model)
    came = len(picture_lengths(features, "image"))
    if came != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures of as many prompts were prepared, and the processor made "
            f"{came} of them: this model's takes pictures as those of one prompt, so ask one "
            "prompt at a time"
        )
    return features
