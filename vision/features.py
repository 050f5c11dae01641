"""Encoded pictures, and which of them stand in which row of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.model_protocol import UnsupportedModelError

PLACEHOLDERS = ("image_token_id", "video_token_id")

Features = Mapping[str, Any]

# Where an encoder's output holds the pictures that the language model reads: the first that is set.
HOLDERS = ("pooler_output", "last_hidden_state", "deepstack_features")
# What a language model reads beside them, alike for all pictures: its markers around one.
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


def picture_lengths(features: Features | None, modality: str) -> list[int]:
    """Tokens that each encoded picture (or video) of the batch fills, in order."""
    encoded = (features or {}).get(modality)
    return [] if encoded is None else [token_count(picture) for picture in pictures_of(encoded)]


def token_count(picture: Tensor) -> int:
    """Tokens that one encoded picture `[..., D]` fills."""
    return picture.shape[:-1].numel()


def pictures_of(encoded: Any) -> Sequence[Tensor]:
    """What an encoder's output holds of each picture, `[..., D]` each, in order."""
    name = holder(encoded)
    values = getattr(encoded, name)
    return layer_and_pictures(values[0])[1] if name == "deepstack_features" else values


def holder(encoded: Any) -> str:
    """The field of an encoder's output that its pictures are in."""
    for name in HOLDERS:
        if getattr(encoded, name, None) is not None:
            return name
    raise UnsupportedModelError(
        f"found no pictures in {type(encoded).__name__}, the output of this model's encoder: "
        f"wanted one of {', '.join(HOLDERS)}"
    )


def has_markers(encoded: Any) -> bool:
    """Whether an encoder's output also holds what markers around a picture are read as."""
    return any(getattr(encoded, name, None) is not None for name in SHARED)


def layer_and_pictures(entry: Any) -> tuple[int | None, Any]:
    """An entry of `deepstack_features`: pictures, or the layer that takes them and the pictures."""
    if isinstance(entry, tuple) and isinstance(entry[0], int):
        return entry
    return None, entry


def edited(edit: Callable[..., Any], *outputs: Any) -> Any:
    """An encoder's output with other pictures: `edit(pictures, ...)`, one of each of `outputs`.

    It is called once for the pictures and once for each further layer of them, and gives them back
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
    layer, _ = layer_and_pictures(entries[0])
    pictures = edit(*(layer_and_pictures(entry)[1] for entry in entries))
    return pictures if layer is None else (layer, pictures)


def check_fields(encoded: Any) -> None:
    """Raises `ValueError` for a field of which is not known how to cut it picture by picture."""
    known = {*HOLDERS, *SHARED, *UNREAD}
    unknown = [n for n, value in vars(encoded).items() if value is not None and n not in known]
    if unknown:
        raise UnsupportedModelError(
            f"the output of this model's encoder holds {', '.join(unknown)}, of which is not known "
            "what belongs to which picture: ask about one prompt at a time, greedily or by sampling"
        )


def pictures_by_row(counts: list[int], lengths: list[int]) -> list[list[int]]:
    """Which pictures stand in which row, from placeholders per row and tokens per picture."""
    rows: list[list[int]] = []
    picture = 0
    for count in counts:
        row = []
        while count > 0 and picture < len(lengths):
            row.append(picture)
            count -= lengths[picture]
            picture += 1
        rows.append(row)
    return rows


def picture_rows(input_ids: Tensor, features: Features, config: Any) -> dict[str, list[list[int]]]:
    """By modality, which pictures stand in which row."""
    found = {}
    for modality in features:
        ids = token_ids(config, (f"{modality}_token_id",))
        counts = is_one_of(input_ids, ids).sum(dim=1).tolist()
        found[modality] = pictures_by_row(counts, picture_lengths(features, modality))
    return found


def select_rows(
    features: Features, input_ids: Tensor, config: Any, rows: Sequence[int]
) -> dict[str, Any]:
    """The pictures of the chosen rows, row by row."""
    by_row = picture_rows(input_ids, features, config)
    return {
        modality: select_pictures(encoded, [p for row in rows for p in by_row[modality][row]])
        for modality, encoded in features.items()
    }


def select_from(features: Features, input_ids: Tensor, config: Any, start: int) -> dict[str, Any]:
    """The pictures that stand from column `start` on; a modality without any is left out."""
    found = {}
    for modality, rows in picture_rows(input_ids, features, config).items():
        lengths = picture_lengths(features, modality)
        ids = token_ids(config, (f"{modality}_token_id",))
        before = is_one_of(input_ids[:, :start], ids).sum(dim=1).tolist()
        later = []
        for row, pictures in enumerate(rows):
            filled = 0
            for picture in pictures:
                filled += lengths[picture]
                if filled > before[row]:
                    later.append(picture)
        if later:
            found[modality] = select_pictures(features[modality], later)
    return found


def select_pictures(encoded: Any, pictures: list[int]) -> Any:
    """The chosen pictures of an encoder's output, in the containers that the model expects."""

    def select(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values[torch.tensor(pictures, dtype=torch.long, device=values.device)]
        return [values[p] for p in pictures]

    return edited(select, encoded)


def alternating(first: Any, second: Any) -> Any:
    """Two encodings of equally many pictures as one, a picture of each in turn."""

    def paired(one: Any, other: Any) -> Any:
        pictures = [p for pair in zip(one, other, strict=True) for p in pair]
        stackable = isinstance(one, Tensor) and one.shape[1:] == other.shape[1:]
        return torch.stack(pictures) if stackable else pictures

    return edited(paired, first, second)
