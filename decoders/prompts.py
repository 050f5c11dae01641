"""What is read of a prompt and its pictures, and how a branch reads it into its cache."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from sightline.decoders.branch import ENCODER_INPUTS, POSITION_INPUTS, Branch
from sightline.decoders.caches import has_windows, layers_that_keep_keys
from sightline.decoders.checks import check_cached
from sightline.decoders.features import (
    Features,
    has_markers,
    is_one_of,
    picture_lengths,
    select_from,
    select_rows,
    token_ids,
)
from sightline.pictures import listed, open_picture

SHOWN = {"image", "images", "pixel", "pixels", "video", "videos"}  # in names of keywords
TYPES = "mm_token_type_ids"  # along a prompt: which tokens are images', the only ones they change


def given_processor(processor: Any, parts: Sequence[Any]) -> Any:
    """The call's processor, or else that of a part; None where neither has one."""
    made_with = (getattr(part, "processor", None) for part in parts)
    return next((each for each in (processor, *made_with) if each is not None), None)


def pictures_asked(
    images: Any, expert: Branch, model: Any, is_needed: bool, processor: Any
) -> tuple[tuple[Any, ...], ...]:
    """The caller's pictures by row, opened; raises `ValueError` unless they are the prompt's.

    They are counted in the prompt and not in the encoder's output, whose entries may be tiles.

    Args:
        images: All pictures in the order of the prompts, or an entry for each row: its picture, a
            list of its pictures, None or [] where it has none.
    """
    if images is None:
        if is_needed:
            raise ValueError(
                "this decoder looks at the picture again and needs it, not only its pixel_values: "
                "generate(..., images=picture), or a list of all pictures of the batch in order"
            )
        return ()
    entries = listed(images)
    given = [pictures_in(entry) for entry in entries]
    came = [len(pictures) for pictures in given]
    counts = [len(row) for row in expert.images(model, processor)]
    if sum(came) != sum(counts):
        raise ValueError(
            f"images holds {sum(came)} pictures and the prompt {sum(counts)}: pass those of the "
            "whole batch, in the order of the prompts"
        )
    are_rows = any(entry is None or isinstance(entry, list | tuple) for entry in entries)
    if (0 in came or (are_rows and len(came) == len(counts))) and came != counts:
        raise ValueError(
            f"images holds {came} pictures by row and the prompts hold {counts}: pass an entry for "
            "each row, None or [] where it has none, or all pictures of the batch in one list"
        )
    following = (open_picture(image) for pictures in given for image in pictures)
    return tuple(tuple(islice(following, count)) for count in counts)


def pictures_in(entry: Any) -> list[Any]:
    """The pictures of one entry of `images`: one, several, or none."""
    if isinstance(entry, list | tuple):
        return list(entry)
    return [] if entry is None else [entry]


def encoded_pictures(
    model_kwargs: Mapping[str, Any], input_ids: Tensor, copies: int, config: Any
) -> dict[str, Any]:
    """Encoded pictures of B prompts, from those that `generate` repeated for B * copies rows."""
    features = {
        modality: encoded
        for modality, encoded in (model_kwargs.get("mm_encoder_outputs") or {}).items()
        if encoded is not None
    }
    if copies == 1 or is_unrepeated(features, input_ids[::copies], config):
        return features
    return select_rows(features, input_ids, config, range(0, len(input_ids), copies))


def is_unrepeated(features: Features, prompts: Tensor, config: Any) -> bool:
    """Whether pictures fill the prompts once: `generate` repeats only what has a `pooler_output`.

    (5.23. Without a decoder, such models cannot be asked for beams.)
    """
    fills = [
        int(is_one_of(prompts, token_ids(config, (f"{modality}_token_id",))).sum())
        == sum(picture_lengths(features, modality))
        for modality in features
    ]
    return all(fills)


def in_as_many_parts(positions: list[Tensor]) -> list[Tensor]:
    """Positions of each branch, all `[B, T]` or all `[P, B, T]`.

    A model may count text in one row and only pictures in P parts: text has the same in each.
    """
    parts = max((p.shape[:-2] for p in positions), key=len)
    return [p.expand(*parts, *p.shape[-2:]) for p in positions]


def is_row_tensor(value: Any, rows: Tensor) -> bool:
    """Whether a keyword holds one entry for each row, as `generate` expands it."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(rows)


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


def can_share(branch: Branch, model: Any) -> bool:
    """Whether keys up to each row's last image token are the same whatever follows them.

    They are not where what the processor wrote behind it is read as part of the image.
    """
    if not branch.image_mask.any(dim=1).all() or branch.image_mask[:, -1].any():
        return False
    if set(branch.aligned) - {TYPES}:
        return False
    follows = branch.image_mask.flip(1).cumsum(dim=1).flip(1) == 0
    if TYPES in branch.aligned and branch.aligned[TYPES][follows].any():
        return False
    if any(has_markers(encoded) for encoded in (branch.features or {}).values()):
        return False
    if has_windows(model.config) and len(branch.input_ids) > 1:
        return False
    return layers_that_keep_keys(model)


def forward_prompt(model: Any, branch: Branch, cache: Any, shared: Mapping[str, Any]) -> Any:
    """One branch's prompt through the model, into its cache: what that holds is not read again.

    `shared` are keywords common to all branches, row tensors of B rows.
    """
    mask, start, features = branch.attention_mask, cache.get_seq_length(), branch.features or {}
    if start:
        features = select_from(features, branch.input_ids, model.config, start)
    given = {
        "next_sequence_length": branch.length - start,
        "is_first_iteration": True,
        "past_key_values": cache,
        "attention_mask": None if mask.all() else mask,
        "position_ids": branch.position_ids,
        **{name: values[:, start:] for name, values in branch.aligned.items()},
        **({"mm_encoder_outputs": dict(features)} if features else {}),
        **shared,
    }
    outputs = model(**prepare_inputs(model, branch.input_ids, given), return_dict=True)
    check_cached(cache, branch.length)
    return outputs


def prepare_inputs(model: Any, input_ids: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the model makes of the loop's keywords, with the positions that are in them.

    Some models drop them and count the padding along, which differs from branch to branch.
    """
    inputs = model.prepare_inputs_for_generation(input_ids, **given)
    positions = given.get("position_ids")
    if positions is not None and inputs.get("position_ids") is None:
        latest = given.get("next_sequence_length") or input_ids.shape[1]
        inputs["position_ids"] = positions[..., -latest:]
    return inputs
