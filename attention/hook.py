"""Hands edited attention to a transformers model, for one call at a time.

While somebody needs it, the text model's attention is ours by name. A forward that carries
`KEYWORD` is edited and recorded; any other runs the function that ours stands in for, so a model
may be shared between threads.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sightline.attention import reference
from sightline.attention.base import AttentionEdit
from sightline.attention.recorder import AttentionRecorder
from sightline.attention.reference import KeyWeights
from sightline.compat import ATTENTIONS, MASKS, attention_name, has_attention_interface
from sightline.model_protocol import Model, UnsupportedModelError

KEYWORD = "sightline_streams"
OURS = "sightline_"  # before the name of the attention that ours stands in for
STANDS_IN_FOR = ("sdpa", "eager")
UNKNOWN_TO_US = ("softcap", "s_aux", "sinks", "position_bias", "cache")  # change the result
# Keys that an indexer chose. Models make a mask of them, but only for attention that is called by
# transformers' own names; under ours they would be lost (5.23).
CHOSEN_KEYS = ("indices", "block_indices")

# The switch is shared by all calls on a model, so somebody must know who still needs it.
_users: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lock = Lock()


@dataclass
class BranchAttention:
    """One branch's block of rows in a forward.

    Args:
        recorder: What is known of its keys.
        attention_edits: What edits them.
        asked: By layer, what is recorded.
    """

    recorder: AttentionRecorder
    attention_edits: tuple[AttentionEdit, ...] = ()
    asked: dict[int, frozenset[str]] | None = None

    @property
    def is_idle(self) -> bool:
        return not self.attention_edits and not self.asked

    @property
    def is_alike(self) -> bool:
        """Whether every answered token is edited and recorded by the same operations on the same
        shapes, where the cache has one length from the start: then they can be compiled once."""
        asked = frozenset[str]().union(*(self.asked or {}).values())
        growing = any(part.grows for part in self.attention_edits)
        return not (growing or asked & {"columns", "image_mass"} or self.recorder.partial)


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring blocks that are read in one call of attention.

    Args:
        blocks: How many.
        start: Columns before it are padding in all their rows, and are not read.
        is_padded: Whether some of their rows have further padding.
        is_idle: Whether nothing edits or records them.
    """

    blocks: int
    start: int
    is_padded: bool
    is_idle: bool


def row_groups(blocks: Sequence[BranchAttention], lengths: Sequence[int]) -> tuple[RowGroup, ...]:
    """Blocks that can be read together, of prompts so long, padded on the left to the longest.

    Weights of keys count from the first column, so what is edited is read from there.
    """
    found: list[RowGroup] = []
    for block, length in zip(blocks, lengths, strict=True):
        start = max(lengths) - length if block.is_idle else 0
        is_padded = start < max(lengths) - length or not bool(block.recorder.mask.all())
        group = RowGroup(1, start, is_padded, block.is_idle)
        if found and replace(found[-1], blocks=1) == group:
            found[-1] = replace(group, blocks=found[-1].blocks + 1)
        else:
            found.append(group)
    return tuple(found)


class AttentionPlan:
    """The blocks of one forward, in the order of their rows, all equally many.

    Args:
        blocks: One stream per branch.
        row_groups: How they are read, one after another; fewer than two: all in one call.
    """

    def __init__(self, blocks: Sequence[BranchAttention], row_groups: Sequence[RowGroup] = ()):
        self.blocks = tuple(blocks)
        self.reached: set[int] = set()
        self._latest: tuple[Any, KeyWeights] | None = None
        self.row_groups: list[tuple[RowGroup, AttentionPlan]] = []
        left = list(blocks)
        for group in row_groups if len(row_groups) > 1 else ():
            self.row_groups.append((group, AttentionPlan(left[: group.blocks])))
            left = left[group.blocks :]

    def are_apart(self, query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
        """Whether this is one token of every row, over all keys, with padding hidden by a mask."""
        if not self.row_groups or (query.shape[2], key.shape[2]) != (
            1,
            self.blocks[0].recorder.total,
        ):
            return False
        return mask is not None or not any(
            group.is_padded or group.start for group, _ in self.row_groups
        )

    def weights(self, layer: int, queries: int, keys: int, device: torch.device) -> Any:
        """`KeyWeights` of all rows, or None where every block leaves the layer alone."""
        edits = []
        for block in self.blocks:
            made = [part(layer, block.recorder) for part in block.attention_edits]
            edit = side_by_side([w for w in made if w is not None])
            edits.append(from_latest(edit, block.recorder.queries - queries))
        if all(edit is None for edit in edits):
            return None
        if torch.compiler.is_compiling():  # where equal operations are found by the compiler
            return self._together(edits, queries, keys, device)
        asked = (keys, *(part for edit in edits for part in parts_of(edit)))
        if self._latest is None or not are_same(self._latest[0], asked):
            self._latest = asked, self._together(edits, queries, keys, device)
        return self._latest[1]

    def _together(
        self, edits: Sequence[KeyWeights | None], queries: int, keys: int, device: torch.device
    ) -> KeyWeights:
        """One edit per block, not all of them None -> one of all rows."""
        edit = edits[0]
        if len(edits) == 1 and edit is not None:
            recorder = self.blocks[0].recorder
            parts = {n: held(getattr(edit, n), recorder, keys) for n in ("scale", "gain", "bias")}
            return KeyWeights(**parts, first_query=edit.first_query)
        return stacked(edits, [block.recorder for block in self.blocks], queries, keys, device)

    def records(self, layer: int) -> frozenset[str]:
        """What any block asks of a layer."""
        return frozenset().union(*((b.asked or {}).get(layer, frozenset()) for b in self.blocks))

    def write(self, layer: int, recorded: Mapping[str, Tensor]) -> None:
        """Gives each block what it asked of its own rows."""
        for number, block in enumerate(self.blocks):
            names = (block.asked or {}).get(layer, frozenset())
            if names:
                own = {name: recorded[name].chunk(len(self.blocks))[number] for name in names}
                block.recorder.write(layer, own)


def from_latest(edit: KeyWeights | None, left_out: int) -> KeyWeights | None:
    """The edit of a layer that gets the latest queries alone, without the first `left_out`.

    Layers that share another's keys need no others of a prompt, and some models know it.
    """
    if edit is None or left_out <= 0:
        return edit
    first = edit.first_query - left_out
    left = first.clamp_min(0) if isinstance(first, Tensor) else max(0, first)
    return replace(edit, first_query=left)


def parts_of(edit: KeyWeights | None) -> tuple[Any, ...]:
    return (None,) * 4 if edit is None else (edit.scale, edit.gain, edit.bias, edit.first_query)


def are_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two edits are of the very same tensors, as those of several layers often are."""
    return len(one) == len(other) and all(
        a is b or (isinstance(a, int) and isinstance(b, int) and a == b)
        for a, b in zip(one, other, strict=True)
    )


def held(weight: Tensor | None, recorder: AttentionRecorder, keys: int) -> Tensor | None:
    return None if weight is None else recorder.held(weight, keys)[..., :keys]


def side_by_side(edits: Sequence[KeyWeights]) -> KeyWeights | None:
    """Several edits of one branch's keys: scales multiply, gains and biases add."""
    if len(edits) <= 1:
        return edits[0] if edits else None
    first, *others = edits
    for other in others:
        if not same_rows(first.first_query, other.first_query):
            raise ValueError(
                "two attention edits edit one layer from different queries on: give them "
                "different layers"
            )
        first = KeyWeights(
            scale=merged(first.scale, other.scale, 1.0, torch.mul),
            gain=merged(first.gain, other.gain, 0.0, torch.add),
            bias=merged(first.bias, other.bias, 0.0, torch.add),
            first_query=first.first_query,
        )
    return first


def same_rows(one: int | Tensor, other: int | Tensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return isinstance(one, int) and isinstance(other, int) and one == other


def merged(
    one: Tensor | None, other: Tensor | None, neutral: float, operation: Callable
) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    width = max(one.shape[-1], other.shape[-1])
    return operation(widened(one, width, neutral), widened(other, width, neutral))


def widened(weight: Tensor, width: int, neutral: float) -> Tensor:
    return torch.nn.functional.pad(weight, (0, width - weight.shape[-1]), value=neutral)


def stacked(
    edits: Sequence[KeyWeights | None],
    recorders: Sequence[AttentionRecorder],
    queries: int,
    keys: int,
    device: torch.device,
) -> KeyWeights:
    """One edit per block -> one of all rows; blocks without an edit are neutral."""
    rows = len(recorders[0].mask)
    parts: dict[str, Tensor | None] = {}
    for name, neutral in (("scale", 1.0), ("gain", 0.0), ("bias", 0.0)):
        own = [
            None if edit is None else held(getattr(edit, name), recorder, keys)
            for edit, recorder in zip(edits, recorders, strict=True)
        ]
        given = [weight for weight in own if weight is not None]
        if not given:
            parts[name] = None
            continue
        heads = max(weight.shape[1] for weight in given)
        width = max(weight.shape[2] for weight in given)
        blocks = [
            torch.full((rows, heads, width), neutral, device=device)
            if weight is None
            else widened(weight.float(), width, neutral).expand(rows, heads, width)
            for weight in own
        ]
        parts[name] = torch.cat(blocks)
    return KeyWeights(**parts, first_query=stacked_rows(edits, rows, device))


def stacked_rows(
    edits: Sequence[KeyWeights | None], rows: int, device: torch.device
) -> int | Tensor:
    first = [edit.first_query for edit in edits if edit is not None]
    if all(isinstance(row, int) and row == first[0] for row in first):
        return first[0]
    return torch.cat(
        [
            torch.as_tensor(0 if edit is None else edit.first_query, device=device).expand(rows)
            for edit in edits
        ]
    )


def recalibrated(
    original: Callable | None,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers'. `original` None stands for the model's own eager."""
    plan: AttentionPlan | None = kwargs.pop(KEYWORD, None)
    check_mask(kwargs)
    if plan is not None and plan.are_apart(query, key, attention_mask):
        plan.reached.add(module.layer_idx)
        attend = partial(recalibrated, original, module, scaling=scaling, dropout=dropout, **kwargs)
        return one_by_one(attend, plan, query, key, value, attention_mask)

    def unedited() -> tuple[Tensor, Tensor | None]:
        attend = original or sys.modules[type(module).__module__].eager_attention_forward
        return attend(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )

    if plan is None:
        return unedited()
    plan.reached.add(module.layer_idx)
    layer, queries, keys = module.layer_idx, query.shape[2], key.shape[2]
    weights = plan.weights(layer, queries, keys, query.device)
    asked = plan.records(layer)
    if weights is None and not asked:
        return unedited()
    check_keywords(kwargs)
    recorders = [block.recorder for block in plan.blocks]
    check_queries(asked, recorders, layer, queries)
    record = reference.Record(
        row="row" in asked,
        groups="groups" in asked,
        columns="columns" in asked,
        mass=image_keys(recorders, keys) if "mass" in asked else None,
    )
    given: dict[str, Any] = {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "mask": attention_mask,
        "causal": attention_mask is None and queries > 1 and is_causal(module, kwargs),
        "weights": weights,
    }
    first = first_concerned(weights, asked, queries)
    before = [unedited()[0][:, :first]] if first else []
    output, recorded = attend_for(query.device)(
        query[:, :, first:], key, value, record=record, **latest(given, first, queries)
    )
    made = {n: values for n, values in recorded._asdict().items() if values is not None}
    if "chosen" in asked:
        chosen = torch.cat([queried(recorder)[:, -queries:] for recorder in recorders])
        made["chosen"] = reference.chosen_rows(query, key, chosen, **given)
    plan.write(layer, made)
    return torch.cat([*before, output], dim=1) if before else output, None


def one_by_one(
    attend: Callable,
    plan: AttentionPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Each run by itself: an attention function's output of all rows."""
    each, first = len(query) // len(plan.blocks), 0
    outputs, shares = [], []
    for group, own in plan.row_groups:
        rows = slice(first, first + group.blocks * each)
        first = rows.stop
        hidden = None
        if group.is_padded and mask is not None:
            hidden = mask.expand(len(query), *mask.shape[1:])[rows, ..., group.start :]
        keys, values = (x[rows, :, group.start :] for x in (key, value))
        output, share = attend(query[rows], keys, values, hidden, **{KEYWORD: own})
        outputs.append(output)
        if share is not None:
            shares.append(torch.nn.functional.pad(share, (group.start, 0)))
    whole = torch.cat(shares) if len(shares) == len(outputs) else None
    return torch.cat(outputs), whole


def first_concerned(weights: KeyWeights | None, asked: frozenset[str], queries: int) -> int:
    """The first query that is edited, or whose probabilities are recorded; 0 where rows differ.

    What is recorded is of the last query, but for sums over all.
    """
    if "columns" in asked:
        return 0
    if weights is None:
        return queries - 1
    return min(weights.first_query, queries - 1) if isinstance(weights.first_query, int) else 0


def latest(given: Mapping[str, Any], first: int, queries: int) -> dict[str, Any]:
    """What attention is given for the queries from the first on alone."""
    if not first:
        return dict(given)
    mask, weights = given["mask"], given["weights"]
    if mask is not None and mask.shape[-2] == queries:
        mask = mask[..., first:, :]
    if weights is not None:
        weights = replace(weights, first_query=0)
    return {**given, "mask": mask, "weights": weights}


def queried(recorder: AttentionRecorder) -> Tensor:
    """`[R, Q]` bool; none where a branch chose none."""
    if recorder.queried is not None:
        return recorder.queried
    return recorder.mask.new_zeros(len(recorder.mask), recorder.queries)


def image_keys(recorders: Sequence[AttentionRecorder], keys: int) -> Tensor:
    return torch.cat([recorder.held(recorder.image_mask, keys) for recorder in recorders])


def attend_for(device: torch.device) -> Callable:
    """The kernel on CUDA, where Triton is installed; else the torch reference, which agrees."""
    if device.type != "cuda":
        return reference.attend
    try:
        from sightline.attention import kernel
    except ImportError:
        return reference.attend
    return kernel.attend


def is_causal(module: Any, kwargs: Mapping[str, Any]) -> bool:
    """What no mask means."""
    given = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


def check_mask(kwargs: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the mask does not say which keys are attended to."""
    chosen = [name for name in CHOSEN_KEYS if kwargs.get(name) is not None]
    if chosen:
        raise UnsupportedModelError(
            f"this model's attention chooses its keys by {', '.join(chosen)} and not by its mask, "
            "which edited attention does not reproduce: use a decoder without an attention edit "
            "(VCD, VDD)"
        )


def check_keywords(kwargs: dict[str, Any]) -> None:
    """Raises `ValueError` for attention of a form that the edit is not defined for."""
    unknown = [name for name in UNKNOWN_TO_US if kwargs.get(name) is not None]
    if unknown:
        raise UnsupportedModelError(
            f"this model's attention uses {', '.join(unknown)}, which edited attention does "
            "not reproduce: use a decoder without an attention edit (VCD, VDD)"
        )


def check_queries(
    asked: frozenset[str], recorders: Sequence[AttentionRecorder], layer: int, queries: int
) -> None:
    """Raises `ValueError` if a layer lacks queries that something is to be recorded of."""
    left_out = recorders[0].queries - queries
    if left_out <= 0:
        return
    chosen = "chosen" in asked and any(queried(own)[:, :left_out].any() for own in recorders)
    if chosen or "columns" in asked:
        raise UnsupportedModelError(
            f"layer {layer} of this model reads the last {queries} of the prompt's tokens alone, "
            "as it shares the keys of another layer, and the attention of earlier ones is asked "
            "for: use earlier layers, or a decoder that does not record it"
        )


def can_switch(model: Model) -> bool:
    """Whether the text model's attention can be ours, and is handed a forward's keywords."""
    config = model.config.get_text_config(decoder=True)
    return (
        has_attention_interface(model)
        and attention_name(config).removeprefix(OURS) in STANDS_IN_FOR
        and (config is model.config or _name_of(config, model) is not None)
    )


@contextmanager
def switched(model: Model) -> Iterator[None]:
    """The text model's attention is ours inside; the last user of the model switches back."""
    config = model.config.get_text_config(decoder=True)
    with _lock:
        if _users.get(model, 0) == 0:
            _switch(model, config, _registered(attention_name(config)))
        _users[model] = _users.get(model, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[model] -= 1
            if _users[model] == 0:
                _switch(model, config, _replaced(attention_name(config)))


def _registered(name: str) -> str:
    """Our name for what stands in for the attention called `name`, registered on first use."""
    if name not in STANDS_IN_FOR:
        raise UnsupportedModelError(
            f"attention edit stands in for {' or '.join(STANDS_IN_FOR)} attention, and this model "
            f'uses {name!r}: load it with attn_implementation="sdpa"'
        )
    ours = f"{OURS}{name}"
    if ours not in ATTENTIONS:
        original = None if name == "eager" else ATTENTIONS[name]
        AttentionMaskInterface.register(ours, MASKS[name])
        AttentionInterface.register(ours, partial(recalibrated, original))
    return ours


def _replaced(ours: str) -> str:
    return ours.removeprefix(OURS)


def _switch(model: Model, config: Any, name: str) -> None:
    """Sets the text model's attention, by the name of its config within the model's."""
    key = "" if config is model.config else _name_of(config, model)
    if key is None:
        raise UnsupportedModelError(
            f"attention edit changes the attention of the text model alone, and the config of "
            f"{type(model).__name__} does not name one"
        )
    model.set_attn_implementation({key: name})
    if attention_name(config) != name:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot switch its attention: use a decoder without "
            "attention edit (VCD, VDD)"
        )


def _name_of(config: Any, model: Model) -> str | None:
    """What the model's config calls that of its text model; None where it has no name for it."""
    for name in model.config.sub_configs:
        if getattr(model.config, name) is config:
            return name
    return None
