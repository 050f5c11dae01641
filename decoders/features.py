"""Encoded pictures, and which of them stand in which row of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Features = Mapping[str, Any]


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
    return [] if encoded is None else [len(picture) for picture in encoded.pooler_output]


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

    chosen = {"pooler_output": select(encoded.pooler_output)}
    deepstack = getattr(encoded, "deepstack_features", None)
    if deepstack is not None:
        chosen["deepstack_features"] = [select(layer) for layer in deepstack]
    return type(encoded)(**chosen)


def alternating(first: Any, second: Any) -> Any:
    """Two encodings of equally many pictures as one, a picture of each in turn."""

    def paired(one: Any, other: Any) -> Any:
        pictures = [p for pair in zip(one, other, strict=True) for p in pair]
        stackable = isinstance(one, Tensor) and one.shape[1:] == other.shape[1:]
        return torch.stack(pictures) if stackable else pictures

    chosen = {"pooler_output": paired(first.pooler_output, second.pooler_output)}
    deepstack = getattr(first, "deepstack_features", None)
    if deepstack is not None:
        chosen["deepstack_features"] = [
            paired(*layers) for layers in zip(deepstack, second.deepstack_features, strict=True)
        ]
    return type(first)(**chosen)
