"""What is kept between calls, for as long as its owner lives."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sightline.decoders.caches import begin

if TYPE_CHECKING:
    from sightline.decoders.branch import Branch

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """What was found for each owner; it goes with the owner, and the oldest beyond `most`.

    Args:
        most: Entries that are kept for each owner.
    """

    def __init__(self, most: int):
        self.most = most
        self.by_owner: WeakKeyDictionary[Any, OrderedDict[K, V]] = WeakKeyDictionary()

    def of(self, owner: Any) -> OrderedDict[K, V]:
        """The owner's entries, to be read and added to."""
        return self.by_owner.setdefault(owner, OrderedDict())

    def trim(self, owner: Any) -> None:
        """Forgets the oldest entries, once those of a call are read."""
        known = self.of(owner)
        while len(known) > self.most:
            known.popitem(last=False)


class ReadTexts(Memory[tuple, tuple[Tensor, ...]]):
    """Prompts without pictures as a model read them: logits of the last position, then keys and
    values of each layer, one row of each.

    Entries are found by text, padding, positions, dtype and device. Whoever changes weights makes
    a new one: that is not seen.
    """

    def read(
        self, model: Any, branch: "Branch", cache: Any, read: Callable[["Branch"], Any]
    ) -> Tensor:
        """Fills an empty cache of keys alone with a branch's rows; logits `[B, 1, V]`.

        Args:
            read: Reads rows that are not known: `(branch) -> (logits [B, 1, V], cache)`.
        """
        known = self.of(model)
        names = [(*text, model.dtype, branch.input_ids.device) for text in branch.texts()]
        # By `get`: another thread may forget an entry meanwhile.
        found = {name: kept for name in names if (kept := known.get(name)) is not None}
        missing = [row for row, name in enumerate(names) if name not in found]
        if missing:
            index = torch.tensor(missing, device=branch.input_ids.device)
            logits, made = read(branch.rows(index, model.config))
            tensors = [logits, *(x for layer in made.layers for x in (layer.keys, layer.values))]
            for place, row in enumerate(missing):
                found[names[row]] = tuple(x[place : place + 1].clone() for x in tensors)
                known[names[row]] = found[names[row]]
        self.trim(model)
        logits, *layers = (torch.cat(rows) for rows in zip(*map(found.get, names), strict=True))
        begin(cache, list(zip(layers[::2], layers[1::2], strict=True)))
        return logits
