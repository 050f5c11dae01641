"""Edits of a branch's prompt: text taken out, put in or in the place of other text, columns moved.

Rows are lists of entries (column in the old prompt, new token or None), of which `gathered` makes
the new prompt.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sightline.engine.branch import Branch, image_mask
from sightline.engine.image_spans import rows_of, warn_of_rest
from sightline.engine.kv_cache import has_windows
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.features import image_lengths, images_by_row, is_one_of, token_ids


def gathered(
    branch: Branch,
    rows: Sequence[Sequence[tuple[int, int | None] | None]],
    keeps_images: bool = False,
) -> Branch:
    """Rows of (place in the old prompt, new token or None), or None for padding.

    Left-padded. Positions go with the old tokens where images are kept, and are to be made
    again where they are not; a new token's position is its place's.
    """
    width = max(len(row) for row in rows)
    index = torch.zeros(len(rows), width, dtype=torch.long, device="cpu")
    new = torch.full((len(rows), width), -1, device="cpu")
    mask = torch.zeros(len(rows), width, dtype=torch.long, device="cpu")
    for r, row in enumerate(rows):
        start = width - len(row)
        filled = [(start + i, *entry) for i, entry in enumerate(row) if entry is not None]
        columns = torch.tensor([column for column, _, _ in filled], device="cpu")
        mask[r, columns] = 1
        index[r, columns] = torch.tensor([place for _, place, _ in filled], device="cpu")
        new[r, columns] = torch.tensor([-1 if t is None else t for _, _, t in filled], device="cpu")
    device = branch.input_ids.device
    index, new, mask = index.to(device), new.to(device), mask.to(device)
    is_old = new < 0
    kept = mask.bool() & is_old

    def along(values: Tensor, keep: Tensor) -> Tensor:
        places = index.view(*index.shape, *[1] * (values.ndim - 2))
        picked = values.gather(1, places.expand(-1, -1, *values.shape[2:]))
        return picked * keep.view(*keep.shape, *[1] * (values.ndim - 2)).to(picked.dtype)

    ids = torch.where(is_old, branch.input_ids.gather(1, index), new)
    padding = branch.input_ids[branch.attention_mask == 0]
    ids = ids.masked_fill(mask == 0, int(padding[0]) if len(padding) else 0)
    positions = branch.position_ids
    if positions is not None:
        positions = positions.gather(-1, index.expand(*positions.shape[:-1], -1))
    return replace(
        branch,
        input_ids=ids,
        attention_mask=mask.to(branch.attention_mask.dtype),
        image_mask=along(branch.image_mask, kept),
        position_ids=positions if keeps_images else None,
        aligned={name: along(values, kept) for name, values in branch.aligned.items()},
        features=branch.features if keeps_images else {},
        pixels=branch.pixels if keeps_images else {},
        prefix=None,
    )


def regathered(branch: Branch, rows: Sequence[Sequence[tuple[int, int | None]]]) -> Branch:
    """Rows of entries as `gathered` takes them; the prefix stays if all of it does, in each."""
    width = 0 if branch.prefix is None else branch.prefix.length
    counts = branch.attention_mask[:, :width].sum(dim=1).tolist()
    heads = [list(row[:count]) for row, count in zip(rows, counts, strict=True)]
    tails = [row[count:] for row, count in zip(rows, counts, strict=True)]
    is_kept = all(token is None and column < width for head in heads for column, token in head)
    if not width or not is_kept:
        return gathered(branch, rows, keeps_images=True)
    made = gathered(branch, padded_heads_and_tails(heads, tails, width), keeps_images=True)
    return replace(made, prefix=branch.prefix)


def split_at(branch: Branch, starts: Sequence[int]) -> Branch:
    """The same rows, what stands before column `starts[r]` of row r padded by itself.

    So columns are the same in every row up to one, and a prefix can be shared from there.
    """
    heads, tails = [], []
    for row, start in enumerate(starts):
        tokens = torch.nonzero(branch.attention_mask[row], as_tuple=True)[0].tolist()
        heads.append([(place, None) for place in tokens if place < start])
        tails.append([(place, None) for place in tokens if place >= start])
    return gathered(branch, padded_heads_and_tails(heads, tails), keeps_images=True)


def continued(
    branch: Branch,
    index: Tensor,
    starts: Sequence[int],
    texts: Sequence[Sequence[int]],
    config: Any,
) -> Branch:
    """Other text after the same beginnings: rows `index`, each cut and continued.

    Args:
        index: Rows of this branch, one for each new row.
        starts: The column of each new row from which on its source is left out.
        texts: Token ids of each new row, none of them an image's.
        config: The model's.

    Tokens with which the old text begins as well stay as they are, with what runs along them:
    an image's closing marker may be among them. The first new token has the positions of the
    first that is left out, a text's too. A prefix stays where the cut is not within it, and
    where no padding behind it takes up a window.
    """
    branch = branch.rows(index, config)
    cuts = [differing(branch, row, *cut) for row, cut in enumerate(zip(starts, texts, strict=True))]
    starts, texts = zip(*cuts, strict=True)
    shared = 0 if branch.prefix is None else branch.prefix.length
    own = [
        int(branch.attention_mask[row, shared:start].sum()) + len(text)
        for row, (start, text) in enumerate(zip(starts, texts, strict=True))
    ]
    is_padded = len(set(own)) > 1
    if any(start < shared for start in starts) or (is_padded and has_windows(config)):
        branch, shared = replace(branch, prefix=None), 0
    heads, tails, bases = [], [], []
    assert branch.position_ids is not None, "a completed branch has positions"
    for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
        cut = start + int(torch.nonzero(branch.attention_mask[row, start:])[0])
        bases.append(branch.position_ids[..., row, cut, None])
        kept = torch.nonzero(branch.attention_mask[row, :start], as_tuple=True)[0].tolist()
        heads.append([(place, None) for place in kept if place < shared])
        tail = [(place, None) for place in kept if place >= shared]
        tails.append([*tail, *((start - 1, token) for token in text)])
    made = gathered(branch, padded_heads_and_tails(heads, tails, shared), keeps_images=True)
    assert made.position_ids is not None
    for row, text in enumerate(texts):
        count = torch.arange(len(text), device=made.input_ids.device)
        made.position_ids[..., row, made.length - len(text) :] = bases[row] + count
    return replace(made, prefix=branch.prefix)


def differing(
    branch: Branch, row: int, start: int, text: Sequence[int]
) -> tuple[int, Sequence[int]]:
    """Where a row's tokens from `start` on first differ from a text's, and the text from there.

    At least the last token of each counts as different.
    """
    ids, mask = branch.input_ids[row].tolist(), branch.attention_mask[row].tolist()
    columns = [column for column in range(start, branch.length) if mask[column]]
    same = 0
    while same < min(len(columns), len(text)) - 1 and ids[columns[same]] == text[same]:
        same += 1
    return columns[same], text[same:]


def inserted(branch: Branch, rows: Sequence[Sequence[tuple[int, int | None]]]) -> Branch:
    """The same rows with one run of new text in each, which may stand in the place of old text.

    What follows, images included, moves on by as many positions.

    Args:
        rows: Of (column of an old token, None), and (column, id) of the new ones, the column
            being that of the first old token that they stand for or before.
    """
    made = gathered(branch, rows, keeps_images=True)
    assert made.position_ids is not None, "a completed branch has positions"
    for row, (entries, columns) in enumerate(zip(rows, branch.columns(), strict=True)):
        text = [number for number, (_, token) in enumerate(entries) if token is not None]
        first = made.length - len(entries) + text[0]
        moved = torch.arange(len(text), device=made.input_ids.device)
        made.position_ids[..., row, first : first + len(text)] += moved
        made.position_ids[..., row, first + len(text) :] += len(entries) - len(columns)
    return made


def without_images(
    branch: Branch,
    model: Model,
    replacement: tuple[int, ...] = (),
    markers: tuple[int, ...] = (),
    processor: Any = None,
) -> Branch:
    """Text only: all that the processor wrote for an image, taken out.

    A row without images stays as it is. Everything else in the prompt stays: system text,
    roles, newlines of the chat template.

    Args:
        model: Names the tokens that open and close an image in its config.
        replacement: Token ids left in the place of each image.
        markers: Ids of further tokens that belong to an image, for models whose config does
            not name them.
        processor: The model's own, which then says what belongs to an image. None: all that
            stands between an image's tokens goes, and markers that are named.
    """
    rows = parsed_rows(branch, model, processor, markers)
    warn_of_rest(model, rows, processor)
    return gathered(
        branch,
        [
            [(columns[number], token) for number, token in row.without_images(replacement)]
            for row, columns in zip(rows, branch.columns(), strict=True)
        ],
    )


def image_columns(
    branch: Branch, model: Model, processor: Any = None
) -> list[list[tuple[int, ...]]]:
    """By row and image, without videos, the columns of its image tokens.

    Args:
        model: Names the image tokens in its config.
        processor: As in `without_images`.
    """
    rows = parsed_rows(branch, model, processor)
    ids = token_ids(model.config, ("image_token_id",))
    return [
        [
            tuple(columns[number] for number in image.tokens)
            for image in row.images
            if row.ids[image.tokens[0]] in ids
        ]
        for row, columns in zip(rows, branch.columns(), strict=True)
    ]


def parsed_rows(
    branch: Branch, model: Model, processor: Any, markers: tuple[int, ...] = ()
) -> list[Any]:
    return rows_of(
        branch.input_ids,
        branch.attention_mask,
        branch.features,
        model,
        processor,
        markers,
        branch.call.chat_template_kwargs,
    )


def with_fewer_image_tokens(branch: Branch, model: Model, encoded: Any) -> Branch:
    """The same prompt, each image's run of tokens as short as the features in `encoded`.

    Positions are made again, without a gap. Where a model gives an image's tokens the rows
    and columns of its grid (M-RoPE), what is left of the grid is none: they are counted on
    like text, so the pixels and their grid go.

    Args:
        model: Names the tokens that images fill in its config.
        encoded: An encoder's output for the same images, `[k, D]` of each, with k at most the
            tokens that the image fills now.
    """
    places = is_one_of(branch.input_ids, token_ids(model.config, ("image_token_id",)))
    lengths = image_lengths(branch.features, "image")
    left_of = image_lengths({"image": encoded}, "image")
    by_row = images_by_row(places.sum(dim=1).tolist(), lengths)
    rows: list[list[tuple[int, int | None]]] = []
    for row, images in enumerate(by_row):
        kept = branch.attention_mask[row] != 0  # a new tensor, whatever the mask's dtype
        left = torch.nonzero(places[row], as_tuple=True)[0].tolist()
        for image in images:
            run, left = left[: lengths[image]], left[lengths[image] :]
            if run[-1] - run[0] != len(run) - 1:
                raise UnsupportedModelError(
                    "an image can be shortened only where its tokens stand side by side, and "
                    "here other tokens stand between them: use a contrast that keeps its length"
                )
            kept[run[left_of[image] :]] = False
        rows.append([(int(place), None) for place in torch.nonzero(kept, as_tuple=True)[0]])
    shorter = gathered(branch, rows)
    return replace(
        shorter,
        image_mask=image_mask(shorter.input_ids, model.config),
        features={**(branch.features or {}), "image": encoded},
    )


def padded_heads_and_tails(
    heads: Sequence[Sequence[Any]], tails: Sequence[Sequence[Any]], width: int = 0
) -> list[list[Any]]:
    """Each row's head, left-padded to the widest head or to `width`, then its tail, left-padded."""
    first = max(width, *(len(head) for head in heads))
    second = max(len(tail) for tail in tails)
    return [
        [*[None] * (first - len(head)), *head, *[None] * (second - len(tail)), *tail]
        for head, tail in zip(heads, tails, strict=True)
    ]
