"""Where a model looks in its pictures while it reads the question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sightline.chat import input_device
from sightline.decoders.asking import Chat
from sightline.decoders.branch import ENCODER_INPUTS, Branch
from sightline.decoders.caches import layers_without_attention
from sightline.decoders.ensemble import watch
from sightline.decoders.geometry import Layout, locate
from sightline.decoders.image_spans import writing_of
from sightline.decoders.preparing import prompts_of
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
    chat = Chat(processor, model, branch.call.chat_template_kwargs)
    seen = watch(model, branch, looking, chat.question_tokens(branch))
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
            locate(processor, model.config, picture, len(columns), branch.call.processor_kwargs)
            for picture, columns in zip(pictures, images, strict=True)
        ]
        for pictures, images in zip(
            branch.call.pictures, branch.images(model, processor), strict=True
        )
    ]


def written(
    texts: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    chat: Chat,
    arguments: Mapping[str, Any],
    begins: bool = False,
) -> dict[str, Any]:
    """What the processor makes of prompts and their pictures, on the model's device.

    Args:
        texts: As it takes them, special tokens and what stands for a picture included.
        pictures: Of each prompt.
        arguments: Of the processor's call.
        begins: Whether the tokenizer adds what a prompt begins with.
    """
    made = prompts_of(chat.processor, texts, pictures, arguments, begins)
    return dict(made.to(input_device(chat.model), chat.model.dtype))


def picture_inputs(
    pictures: Sequence[Sequence[Image.Image]], chat: Chat, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model's encoder takes, for the pictures of each prompt.

    They go through the processor's own call, as those of a prompt do: what it hands its image
    processor, and how it cuts several pictures of one prompt, is its matter.
    """
    texts = [chat.shown(len(own)) for own in pictures]
    return encoder_inputs(written(texts, pictures, chat, arguments))


def encoder_inputs(made: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made.items() if name in ENCODER_INPUTS}


def repainted(branch: Branch, pictures: Sequence[Sequence[Image.Image]], chat: Chat) -> Branch:
    """Each row with other pictures in the place of its own one, as the processor writes them.

    Its prefix stays where that ends before anything that is new.

    Args:
        branch: Of one picture in each row.
        pictures: Of each row, one or more.

    Raises:
        ValueError: The processor does not write the rest of a prompt as it was.
    """
    made = shown_again(branch, pictures, chat)
    entries = [
        [(columns[number], token) for number, token in row.compared(new)]
        for row, columns, new in zip(
            chat.rows(branch), branch.columns(), unpadded(made), strict=True
        )
    ]
    return replace(
        branch.regathered(entries),
        position_ids=None,
        features=None,
        pixels={**branch.pixels, **encoder_inputs(made)},
    )


def shown_again(
    branch: Branch, pictures: Sequence[Sequence[Image.Image]], chat: Chat
) -> dict[str, Any]:
    """What the processor makes of each row's text and these pictures; `ValueError` if the text
    does not come out as it was.
    """
    rows, unit = chat.rows(branch), chat.shown(1)
    texts = [row.as_asked(chat.shown(len(own))) for row, own in zip(rows, pictures, strict=True)]
    start = writing_of(chat.processor, chat.model.config).start
    for begins in (False, True):  # what a prompt begins with stands in the text, or is added to it
        given = [text.removeprefix(start) for text in texts] if begins else texts
        made = written(given, pictures, chat, branch.call.processor_kwargs, begins)
        # Pictures side by side, with nothing around them, may read as one.
        if all(
            row.like(new).as_asked("") == text.replace(unit, "")
            for row, new, text in zip(rows, unpadded(made), texts, strict=True)
        ):
            return made
    raise ValueError(
        f"{type(chat.processor).__name__} does not write the prompt again as it was: build it with "
        "the processor's chat template"
    )


def unpadded(made: dict[str, Any]) -> list[list[int]]:
    """Token ids of each prompt, without padding."""
    rows = zip(made["input_ids"], made["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]
