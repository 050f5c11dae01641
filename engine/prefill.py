"""Prompts read into KV caches: what a branch's forward takes, and what can be shared."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sightline.compat import takes_logits_to_keep
from sightline.engine.branch import (
    Branch,
    Prefix,
)
from sightline.engine.inputs import TYPES
from sightline.engine.kv_cache import has_windows, layers_that_keep_keys
from sightline.engine.prompt_edits import split_at
from sightline.engine.validation import check_cached
from sightline.model_protocol import Model
from sightline.vision.features import has_markers, select_from


def read_images(branch: Branch, model: Model) -> Branch:
    """The same branch, its columns up to each row's last image read and kept as its prefix.

    Left as it is where keys cannot be shared: a row without an image, layers that keep a state in
    place of keys, a window over keys that padding would shift, or text that earlier tokens attend
    to (a prefix language model).
    """
    if branch.prefix is not None or not can_share(branch, model):
        return branch
    branch = split_at(branch, [int(torch.nonzero(mask)[-1]) + 1 for mask in branch.image_mask])
    read = int(torch.nonzero(branch.image_mask[0])[-1]) + 1  # in every row alike
    assert branch.position_ids is not None, "a completed branch has positions"
    head = replace(
        branch,
        input_ids=branch.input_ids[:, :read],
        attention_mask=branch.attention_mask[:, :read],
        image_mask=branch.image_mask[:, :read],
        position_ids=branch.position_ids[..., :read],
        aligned={name: values[:, :read] for name, values in branch.aligned.items()},
    )
    cache = head.cache(model)
    forward_prompt(model, head, cache, last_logits(model))
    layers: Any = cache.layers
    return replace(branch, prefix=Prefix(tuple((la.keys, la.values) for la in layers)))


def last_logits(model: Model) -> dict[str, Any]:
    """Keywords of a forward of which the last position's logits are wanted."""
    keep = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    return {"use_cache": True, **keep}


def in_as_many_parts(positions: list[Tensor]) -> list[Tensor]:
    """Positions of each branch, all `[B, T]` or all `[P, B, T]`.

    A model may count text in one row and only images in P parts: text has the same in each.
    """
    parts = max((p.shape[:-2] for p in positions), key=len)
    return [p.expand(*parts, *p.shape[-2:]) for p in positions]


def is_row_tensor(value: Any, rows: Tensor) -> bool:
    """Whether a keyword holds one entry for each row, as `generate` expands it."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(rows)


def can_share(branch: Branch, model: Model) -> bool:
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


def forward_prompt(model: Model, branch: Branch, cache: Any, shared: Mapping[str, Any]) -> Any:
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


def prepare_inputs(model: Model, input_ids: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the model makes of the loop's keywords, with the positions that are in them.

    Some models drop them and count the padding along, which differs from branch to branch.
    """
    inputs = model.prepare_inputs_for_generation(input_ids, **given)
    positions = given.get("position_ids")
    if positions is not None and inputs.get("position_ids") is None:
        latest = given.get("next_sequence_length") or input_ids.shape[1]
        inputs["position_ids"] = positions[..., -latest:]
    return inputs
