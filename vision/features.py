"""Encoded images, and which of them stand in which row of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.model_protocol import UnsupportedModelError

PLACEHOLDERS = ("image_token_id", "video_token_id")

Features = Mapping[str, Any]

# Where an encoder's output holds the images that the language model reads: the first that is set.
HOLDERS = ("pooler_output", "last_hidden_state", "deepstack_features")
# What a language model reads beside them, alike for all images: its markers around one.
SHARED = ("visual_indicator_features",)
# What describes the encoding alone; no language model reads it.
UNREAD = (
    "attentions",
    "embedding_loss",
    "hidden_states",
    "high_res_vision_attentions",
    "high_res_vision_hidden_states",
    "high_res_vision_last_hidden_state",
    "image_tokens",
    "quantized_last_hidden_state",
    "router_logits",
)


def token_ids(config: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """The token ids that a config holds under `names`, those it has."""
    found: list[int] = []
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            found += value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(found))


def is_one_of(input_ids: Tensor, ids: tuple[int, ...]) -> Tensor:
    """`[...]` bool, true where a token is any of `ids`."""
    return torch.isin(input_ids, torch.tensor(ids, dtype=input_ids.dtype, device=input_ids.device))


def image_lengths(features: Features | None, modality: str) -> list[int]:
    """Tokens that each encoded image (or video) of the batch fills, in order."""
    encoded = (features or {}).get(modality)
    return [] if encoded is None else [token_count(image) for image in images_of(encoded)]


def token_count(image: Tensor) -> int:
    """Tokens that one encoded image `[..., D]` fills."""
    return image.shape[:-1].numel()


def images_of(encoded: Any) -> Sequence[Tensor]:
    """What an encoder's output holds of each image, `[..., D]` each, in order."""
    name = holder(encoded)
    values = getattr(encoded, name)
    return layer_and_images(values[0])[1] if name == "deepstack_features" else values


def holder(encoded: Any) -> str:
    """The field of an encoder's output that its images are in."""
    for name in HOLDERS:
        if getattr(encoded, name, None) is not None:
            return name
    raise UnsupportedModelError(
        f"found no images in {type(encoded).__name__}, the output of this model's encoder: "
        f"wanted one of {', '.join(HOLDERS)}"
    )


def has_markers(encoded: Any) -> bool:
    """Whether an encoder's output also holds what markers around an image are read as."""
    return any(getattr(encoded, name, None) is not None for name in SHARED)


def layer_and_images(entry: Any) -> tuple[int | None, Any]:
    """An entry of `deepstack_features`: images, or the layer that takes them and the images."""
    if isinstance(entry, tuple) and isinstance(entry[0], int):
        return entry
    return None, entry


def edited(edit: Callable[..., Any], *outputs: Any) -> Any:
    """An encoder's output with other images: `edit(images, ...)`, one of each of `outputs`.

    It is called once for the images and once for each further layer of them, and gives them back
    in the container that it got.
    """
    first = outputs[0]
    check_fields(first)
    shared = {name: getattr(first, name, None) for name in SHARED}
    made = {name: value for name, value in shared.items() if value is not None}
    name = holder(first)
    if name != "deepstack_features":
        made[name] = edit(*(getattr(output, name) for output in outputs))
    if getattr(first, "deepstack_features", None) is not None:
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        made["deepstack_features"] = [edited_layer(edit, entries) for entries in layers]
    return type(first)(**made)


def edited_layer(edit: Callable[..., Any], entries: tuple[Any, ...]) -> Any:
    """One entry of `deepstack_features`, made of those of one or more outputs."""
    layer, _ = layer_and_images(entries[0])
    images = edit(*(layer_and_images(entry)[1] for entry in entries))
    return images if layer is None else (layer, images)


def check_fields(encoded: Any) -> None:
    """Raises `ValueError` for a field of which is not known how to cut it image by image."""
    known = {*HOLDERS, *SHARED, *UNREAD}
    unknown = [n for n, value in vars(encoded).items() if value is not None and n not in known]
    if unknown:
        raise UnsupportedModelError(
            f"the output of this model's encoder holds {', '.join(unknown)}, of which is not known "
            "what belongs to which image: ask about one prompt at a time, greedily or by sampling"
        )


def images_by_row(counts: list[int], lengths: list[int]) -> list[list[int]]:
    """Which images stand in which row, from placeholders per row and tokens per image."""
    rows: list[list[int]] = []
    image = 0
    for count in counts:
        row = []
        while count > 0 and image < len(lengths):
            row.append(image)
            count -= lengths[image]
            image += 1
        rows.append(row)
    return rows


def image_rows(input_ids: Tensor, features: Features, config: Any) -> dict[str, list[list[int]]]:
    """By modality, which images stand in which row."""
    found = {}
    for modality in features:
        ids = token_ids(config, (f"{modality}_token_id",))
        counts = is_one_of(input_ids, ids).sum(dim=1).tolist()
        found[modality] = images_by_row(counts, image_lengths(features, modality))
    return found


def select_rows(
    features: Features, input_ids: Tensor, config: Any, rows: Sequence[int]
) -> dict[str, Any]:
    """The images of the chosen rows, row by row."""
    by_row = image_rows(input_ids, features, config)
    return {
        modality: select_images(encoded, [p for row in rows for p in by_row[modality][row]])
        for modality, encoded in features.items()
    }


def select_from(features: Features, input_ids: Tensor, config: Any, start: int) -> dict[str, Any]:
    """The images that stand from column `start` on; a modality without any is left out."""
    found = {}
    for modality, rows in image_rows(input_ids, features, config).items():
        lengths = image_lengths(features, modality)
        ids = token_ids(config, (f"{modality}_token_id",))
        before = is_one_of(input_ids[:, :start], ids).sum(dim=1).tolist()
        later = []
        for row, images in enumerate(rows):
            filled = 0
            for image in images:
                filled += lengths[image]
                if filled > before[row]:
                    later.append(image)
        if later:
            found[modality] = select_images(features[modality], later)
    return found


def select_images(encoded: Any, images: list[int]) -> Any:
    """The chosen images of an encoder's output, in the containers that the model expects."""

    def select(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values[torch.tensor(images, dtype=torch.long, device=values.device)]
        return [values[p] for p in images]

    return edited(select, encoded)


def alternating(first: Any, second: Any) -> Any:
    """Two encodings of equally many images as one, an image of each in turn."""

    def paired(one: Any, other: Any) -> Any:
        images = [p for pair in zip(one, other, strict=True) for p in pair]
        stackable = isinstance(one, Tensor) and one.shape[1:] == other.shape[1:]
        return torch.stack(images) if stackable else images

    return edited(paired, first, second)
