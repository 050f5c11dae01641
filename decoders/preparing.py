"""Images through the processor once more, as the caller's prompt was made of them.

A processor decides at its own call what its image processor is told (patches, tiles, limits of
size), so images are prepared by that call, with the caller's arguments, and by nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from sightline.chat import user_turn
from sightline.decoders.branch import PIXELS, Branch
from sightline.decoders.features import is_one_of, token_ids


def processed(
    processor: Any, rows: Sequence[Sequence[Image.Image]], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What a processor makes of prompts with these images, one prompt a row.

    An image processor by itself is called as it is, with the images of one row.
    """
    if not hasattr(processor, "image_processor"):
        (images,) = rows
        with torch.device("cpu"):
            return processor(images=list(images), **arguments)
    texts = [shortest_prompt(processor, images) for images in rows]
    return prompts_of(processor, texts, rows, arguments)


def shortest_prompt(processor: Any, images: Sequence[Image.Image]) -> str:
    """Text that a processor takes with these images."""
    if getattr(processor, "chat_template", None) is None:
        return f"{processor.image_token}" * len(images) + "?"
    turn = user_turn(images, "?")
    return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


def prompts_of(
    processor: Any,
    texts: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    arguments: Mapping[str, Any],
    begins: bool = False,
) -> Any:
    """What a processor's own call makes of prompts and their images, as tensors.

    Args:
        texts: As it takes them, special tokens and what stands for an image included.
        rows: The images of each.
        arguments: Those that the caller's prompt was made with.
        begins: Whether the tokenizer adds what a prompt begins with.
    """
    given = dict(add_special_tokens=begins, padding=True, padding_side="left", return_tensors="pt")
    with torch.device("cpu"):  # whatever the caller's default device is
        return processor(
            text=list(texts), images=[list(images) for images in rows], **{**arguments, **given}
        )


def settings_of(expert: Branch) -> dict[str, Any]:
    """How the caller had images encoded, as `vision_feature_layer`."""
    return {name: v for name, v in expert.pixels.items() if not isinstance(v, Tensor)}


def check_reproduced(processor: Any, expert: Branch, model: Any) -> None:
    """Raises `ValueError` unless the caller's images, prepared again, make the caller's prompt.

    Compared are the image tokens of each row, sizes and grids, and of one row the pixels' shape.
    """
    rows = expert.call.pictures
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
