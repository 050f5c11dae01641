"""From what `generate` hands a strategy to the expert branch: prompts, images, positions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import __version__ as transformers_version

from sightline.compat import encoded_images, position_ids
from sightline.engine.branch import ENCODER_INPUTS, POSITION_INPUTS, Branch, image_mask
from sightline.engine.prompt_edits import image_columns
from sightline.engine.validation import check_padding
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.features import Features, image_lengths, is_one_of, select_rows, token_ids
from sightline.vision.images import listed, open_image


def expert_branch(
    model: Model,
    input_ids: Tensor,
    copies: int,
    pixels: Mapping[str, Any],
    model_kwargs: dict[str, Any],
    generation_config: Any,
) -> Branch:
    """The branch as asked, from what `generate` hands a strategy, one row per prompt."""
    ids = input_ids[::copies]
    shape = input_ids.shape
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        check_padding(mask[::copies])
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        positions = positions.expand(*positions.shape[:-2], shape[0], shape[1])
        positions = positions[..., ::copies, :]
    aligned = {
        name: value[::copies]
        for name, value in model_kwargs.items()
        if name not in ("attention_mask", "position_ids")
        and isinstance(value, Tensor)
        and value.shape[:2] == shape
    }
    branch = Branch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask[::copies],
        image_mask=image_mask(ids, model.config),
        position_ids=positions,
        aligned=aligned,
        features=prompt_features(model_kwargs, input_ids, copies, model.config),
    )
    pixels = {name: value for name, value in pixels.items() if value is not None}
    if not pixels:
        return branch
    # `generate` made positions without the grids that the recipe asked for, so they are made
    # again, unless they are the caller's own.
    stock = prepare_positions(model, replace(branch, position_ids=None))
    if positions is None or torch.equal(positions, stock):
        branch = replace(branch, position_ids=None)
    return complete(replace(branch, pixels=pixels, features=None), model, generation_config)


def complete(branch: Branch, model: Model, generation_config: Any) -> Branch:
    """The branch with its images encoded and its positions set."""
    if branch.position_ids is None:
        branch = replace(branch, position_ids=prepare_positions(model, branch))
    if branch.features is None:
        call = replace(branch.call, generation_config=generation_config)
        branch = replace(branch, features=encode(replace(branch, call=call), branch.pixels, model))
    return branch


def encode(branch: Branch, pixels: Mapping[str, Any], model: Model) -> Features:
    """Images through the model's encoder, by modality; `pixels` are its inputs."""
    encoded = encoded_images(model, branch.input_ids, pixels, branch.call.generation_config)
    if not encoded:
        raise UnsupportedModelError(
            f"transformers {transformers_version} does not encode the images of "
            f"{type(model).__name__} ahead of its text, which decoders build on: use a newer one"
        )
    return encoded


def prepare_positions(model: Model, branch: Branch) -> Tensor:
    """Positions as the model counts them, `[B, T]` or `[P, B, T]`."""
    given = {"attention_mask": branch.attention_mask, **branch.aligned, **branch.pixels}
    positions = position_ids(model, branch.input_ids, given)
    return positions.expand(*positions.shape[:-2], *branch.input_ids.shape)


@contextmanager
def position_offset_kept(model: Model) -> Iterator[None]:
    """Qwen's helper leaves the offset of its latest prompt on the model: the expert's must stay."""
    owner = model.base_model
    had_offset = hasattr(owner, "rope_deltas")
    offset = getattr(owner, "rope_deltas", None)
    try:
        yield
    finally:
        if had_offset:
            owner.rope_deltas = offset


SHOWN = {"image", "images", "pixel", "pixels", "video", "videos"}  # in names of keywords
TYPES = "mm_token_type_ids"  # along a prompt: which tokens are images', the only ones they change


def given_processor(processor: Any, parts: Sequence[Any]) -> Any:
    """The call's processor, or else that of a part; None where neither has one."""
    made_with = (getattr(part, "processor", None) for part in parts)
    return next((each for each in (processor, *made_with) if each is not None), None)


def images_asked(
    images: Any, expert: Branch, model: Model, is_needed: bool, processor: Any
) -> tuple[tuple[Any, ...], ...]:
    """The caller's images by row, opened; raises `ValueError` unless they are the prompt's.

    They are counted in the prompt and not in the encoder's output, whose entries may be tiles.

    Args:
        images: All images in the order of the prompts, or an entry for each row: its image, a
            list of its images, None or [] where it has none.
    """
    if images is None:
        if is_needed:
            raise ValueError(
                "this decoder looks at the image again and needs it, not only its pixel_values: "
                "generate(..., images=image), or a list of all images of the batch in order"
            )
        return ()
    entries = listed(images)
    given = [images_in(entry) for entry in entries]
    came = [len(images) for images in given]
    counts = [len(row) for row in image_columns(expert, model, processor)]
    if sum(came) != sum(counts):
        raise ValueError(
            f"images holds {sum(came)} images and the prompt {sum(counts)}: pass those of the "
            "whole batch, in the order of the prompts"
        )
    are_rows = any(entry is None or isinstance(entry, list | tuple) for entry in entries)
    if (0 in came or (are_rows and len(came) == len(counts))) and came != counts:
        raise ValueError(
            f"images holds {came} images by row and the prompts hold {counts}: pass an entry for "
            "each row, None or [] where it has none, or all images of the batch in one list"
        )
    following = (open_image(image) for images in given for image in images)
    return tuple(tuple(islice(following, count)) for count in counts)


def images_in(entry: Any) -> list[Any]:
    """The images of one entry of `images`: one, several, or none."""
    if isinstance(entry, list | tuple):
        return list(entry)
    return [] if entry is None else [entry]


def prompt_features(
    model_kwargs: Mapping[str, Any], input_ids: Tensor, copies: int, config: Any
) -> dict[str, Any]:
    """Encoded images of B prompts, from those that `generate` repeated for B * copies rows."""
    features = {
        modality: encoded
        for modality, encoded in (model_kwargs.get("mm_encoder_outputs") or {}).items()
        if encoded is not None
    }
    if copies == 1 or is_unrepeated(features, input_ids[::copies], config):
        return features
    return select_rows(features, input_ids, config, range(0, len(input_ids), copies))


def is_unrepeated(features: Features, prompts: Tensor, config: Any) -> bool:
    """Whether images fill the prompts once: `generate` repeats only what has a `pooler_output`.

    (5.23. Without a decoder, such models cannot be asked for beams.)
    """
    fills = [
        int(is_one_of(prompts, token_ids(config, (f"{modality}_token_id",))).sum())
        == sum(image_lengths(features, modality))
        for modality in features
    ]
    return all(fills)


def is_about_images(name: str, processor: Any = None) -> bool:
    """Whether a keyword of a model's forward tells of images or videos, and so of no other prompt.

    It does if transformers' encoders take it, if its name says so (`image_num_crops`), or if it is
    made by the processor that makes the images.

    Args:
        processor: The model's own, if the caller gave it.
    """
    if name in (*ENCODER_INPUTS, *POSITION_INPUTS) or SHOWN & set(name.split("_")):
        return True
    makers = (getattr(processor, f"{kind}_processor", None) for kind in ("image", "video"))
    return any(name in getattr(maker, "model_input_names", ()) for maker in makers)
