"""Batches in which some rows have an image and others have none.

A part about images is called with the rows that have one, and the other rows stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sightline.engine.branch import Branch
from sightline.engine.parts import about_images
from sightline.engine.prefill import in_as_many_parts
from sightline.engine.prompt_edits import gathered


def concerned(part: Any, branch: Branch, config: Any) -> Branch:
    """What a part is called with: of one about images, only the rows that have one.

    A part about something else gets the whole batch, and so does every part of a batch in which
    all rows have an image, or none has.
    """
    seen, unseen = rows_by_image(branch)
    if not about_images(part) or not len(seen) or not len(unseen):
        return branch
    chosen = replace(branch, features={}).rows(seen, config)
    return replace(chosen, features=branch.features, pixels=branch.pixels)  # all are of these rows


def rows_by_image(branch: Branch) -> tuple[Tensor, Tensor]:
    """Which rows have an image, and which have none."""
    has_image = branch.image_mask.any(dim=1)
    return torch.nonzero(has_image)[:, 0], torch.nonzero(~has_image)[:, 0]


def merged(whole: Branch, made: Branch, config: Any) -> Branch:
    """A branch of all rows: those with an image as a part made them, the others as in `whole`.

    Args:
        made: Completed, one row for each row of `whole` that has an image, in its order.
    """
    seen, unseen = rows_by_image(whole)
    rest = replace(whole, features={}).rows(unseen, config)
    rest = gathered(rest, [[(c, None) for c in row] for row in rest.columns()], keeps_images=True)
    order = torch.cat([seen, unseen]).argsort()

    def joined(both: Sequence[Tensor], dim: int = 1) -> Tensor:
        """Rows of `made` and `rest` in the order of `whole`, left-padded with zeros along `dim`."""
        width = max(values.shape[dim] for values in both)
        padded = [left_padded(values, width, dim) for values in both]
        return torch.cat(padded, dim=dim - 1).index_select(dim - 1, order)

    assert made.position_ids is not None and rest.position_ids is not None, "both are completed"
    positions = in_as_many_parts([made.position_ids, rest.position_ids])
    return replace(
        made,
        input_ids=joined((made.input_ids, rest.input_ids)),
        attention_mask=joined((made.attention_mask, rest.attention_mask)),
        image_mask=joined((made.image_mask, rest.image_mask)),
        position_ids=joined(positions, dim=-1),
        aligned={name: joined((own, rest.aligned[name])) for name, own in made.aligned.items()},
        prefix=None,
        notes=joined_notes(made.notes, rest.notes, order),
        call=whole.call,
    )


def joined_notes(
    made: Mapping[str, Tensor], rest: Mapping[str, Tensor], order: Tensor
) -> dict[str, Tensor]:
    """Notes of all rows; 0 in rows of which a part left none."""
    count = len(order)
    found = {}
    for name, values in made.items():
        none = values.new_zeros(count - len(values), *values.shape[1:])
        found[name] = torch.cat([values, rest.get(name, none)])[order.to(values.device)]
    return found


def left_padded(values: Tensor, width: int, dim: int) -> Tensor:
    """Zeros before the values along `dim`, up to a width."""
    shape = list(values.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([values.new_zeros(shape), values], dim=dim)
