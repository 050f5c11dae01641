"""Images through the processor once more: the caller's own, edited ones, or further ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from sightline.chat import input_device
from sightline.engine.branch import ENCODER_INPUTS, PIXELS, Branch
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.processor_probe import writing_of
from sightline.engine.prompt_edits import regathered
from sightline.model_protocol import Model
from sightline.vision.features import is_one_of, token_ids
from sightline.vision.processor_call import processed, prompts_of


def written(
    texts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    editor: PromptEditor,
    arguments: Mapping[str, Any],
    begins: bool = False,
) -> dict[str, Any]:
    """What the processor makes of prompts and their images, on the model's device.

    Args:
        texts: As it takes them, special tokens and what stands for an image included.
        images: Of each prompt.
        arguments: Of the processor's call.
        begins: Whether the tokenizer adds what a prompt begins with.
    """
    made = prompts_of(editor.processor, texts, images, arguments, begins)
    return dict(made.to(input_device(editor.model), editor.model.dtype))


def image_inputs(
    images: Sequence[Sequence[Image.Image]], editor: PromptEditor, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model's encoder takes, for the images of each prompt.

    They go through the processor's own call, as those of a prompt do: what it hands its image
    processor, and how it cuts several images of one prompt, is its matter.
    """
    texts = [editor.shown(len(own)) for own in images]
    return encoder_inputs(written(texts, images, editor, arguments))


def encoder_inputs(made: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made.items() if name in ENCODER_INPUTS}


def repainted(
    branch: Branch, images: Sequence[Sequence[Image.Image]], editor: PromptEditor
) -> Branch:
    """Each row with other images in the place of its own one, as the processor writes them.

    Its prefix stays where that ends before anything that is new.

    Args:
        branch: Of one image in each row.
        images: Of each row, one or more.

    Raises:
        ValueError: The processor does not write the rest of a prompt as it was.
    """
    made = shown_again(branch, images, editor)
    entries = [
        [(columns[number], token) for number, token in row.compared(new)]
        for row, columns, new in zip(
            editor.rows(branch), branch.columns(), unpadded(made), strict=True
        )
    ]
    return replace(
        regathered(branch, entries),
        position_ids=None,
        features=None,
        pixels={**branch.pixels, **encoder_inputs(made)},
    )


def shown_again(
    branch: Branch, images: Sequence[Sequence[Image.Image]], editor: PromptEditor
) -> dict[str, Any]:
    """What the processor makes of each row's text and these images; `ValueError` if the text
    does not come out as it was.
    """
    rows, unit = editor.rows(branch), editor.shown(1)
    texts = [row.as_asked(editor.shown(len(own))) for row, own in zip(rows, images, strict=True)]
    start = writing_of(editor.processor, editor.model.config).start
    for begins in (False, True):  # what a prompt begins with stands in the text, or is added to it
        given = [text.removeprefix(start) for text in texts] if begins else texts
        made = written(given, images, editor, branch.call.processor_kwargs, begins)
        # Images side by side, with nothing around them, may read as one.
        if all(
            row.like(new).as_asked("") == text.replace(unit, "")
            for row, new, text in zip(rows, unpadded(made), texts, strict=True)
        ):
            return made
    raise ValueError(
        f"{type(editor.processor).__name__} does not write the prompt again as it was: build it "
        "with the processor's chat template"
    )


def unpadded(made: dict[str, Any]) -> list[list[int]]:
    """Token ids of each prompt, without padding."""
    rows = zip(made["input_ids"], made["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def settings_of(expert: Branch) -> dict[str, Any]:
    """How the caller had images encoded, as `vision_feature_layer`."""
    return {name: v for name, v in expert.pixels.items() if not isinstance(v, Tensor)}


def check_reproduced(processor: Any, expert: Branch, model: Model) -> None:
    """Raises `ValueError` unless the caller's images, prepared again, make the caller's prompt.

    Compared are the image tokens of each row, sizes and grids, and of one row the pixels' shape.
    """
    rows = expert.call.images
    if not all(rows):
        return  # a row has a video alone: what looks at images again refuses it itself
    made = processed(processor, rows, expert.call.processor_kwargs)
    ids = token_ids(model.config, ("image_token_id",))
    wanted, came = (
        [
            image_runs(is_one_of(own, ids), len(images))
            for own, images in zip(all_ids, rows, strict=True)
        ]
        for all_ids in (expert.input_ids, made["input_ids"])
    )
    if came != wanted:
        not_reproduced("image tokens by row", came, wanted)
    for name, own in expert.pixels.items():
        again = made.get(name)
        if not isinstance(own, Tensor) or not isinstance(again, Tensor):
            continue
        own = without_empty(own, len(again))
        if name in PIXELS and len(rows) == 1 and again.shape != own.shape:
            not_reproduced(f"{name} of shape", list(again.shape), list(own.shape))
        is_size = own.ndim <= 2 and not own.is_floating_point() and "mask" not in name
        if is_size and again.tolist() != own.tolist():
            not_reproduced(name, again.tolist(), own.tolist())


def without_empty(own: Tensor, images: int) -> Tensor:
    """Of more than `images` entries those that hold anything: rows without an image hold zeros."""
    return own if len(own) <= images else own[own.reshape(len(own), -1).any(dim=1)]


def image_runs(is_image: Tensor, images: int) -> list[int]:
    """Of a row `[T]`: tokens side by side in its one image, or in all of its images together."""
    if images > 1:
        return [int(is_image.sum())]
    edges = torch.nn.functional.pad(is_image.long(), (1, 1)).diff()
    return (torch.nonzero(edges < 0) - torch.nonzero(edges > 0)).flatten().tolist()


def not_reproduced(what: str, came: Any, wanted: Any) -> NoReturn:
    raise ValueError(
        f"images= do not make this prompt again: they make {what} {came}, and the prompt has "
        f"{wanted}. Pass the images that it was made of, and the processor's arguments that it was "
        "made with as processor_kwargs= (generate and sightline.answer take it)"
    )
