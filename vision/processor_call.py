"""The processor's own call for given images, outside of the caller's prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from sightline.vision.images import user_turn


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
