"""What is kept between calls, for as long as its owner lives."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


K = TypeVar("K")
V = TypeVar("V")

# What a layer of PEFT says of its adapters.
ADAPTERS = ("merged_adapters", "active_adapters", "disable_adapters", "scaling")


class Memory(Generic[K, V]):
    """What was found for each owner; it goes with the owner, and the oldest beyond `capacity`.

    Several threads may use one. Where the owner is a model, what was found is that of its weights
    as `weights_of` sees them: after a change it is found anew. `clear` is for changes that are not
    seen. A copy of a memory is empty.

    Args:
        capacity: Entries that are kept for each owner.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.lock = Lock()
        self.by_owner: WeakKeyDictionary[Any, OrderedDict[tuple[Hashable, K], V]] = (
            WeakKeyDictionary()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.capacity,)

    def recall(
        self, owner: Any, keys: Sequence[K], find: Callable[[list[K]], Iterable[V]]
    ) -> list[V]:
        """The value of each key; `find` is asked once, for those that are not known."""
        weights = weights_of(owner) if isinstance(owner, torch.nn.Module) else None
        with self.lock:
            known = self.by_owner.setdefault(owner, OrderedDict())
            found = {key: known[weights, key] for key in keys if (weights, key) in known}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            new = dict(zip(missing, find(missing), strict=True))
            found |= new
            with self.lock:
                known.update(((weights, key), value) for key, value in new.items())
                while len(known) > self.capacity:
                    known.popitem(last=False)
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forgets everything, of every owner."""
        with self.lock:
            self.by_owner.clear()


def weights_of(model: torch.nn.Module) -> Hashable:
    """Equal as long as no change of a model's weights is seen, from the host alone.

    Seen are other tensors, dtypes and devices, writes that autograd counts (optimizers,
    `load_state_dict`, in-place operations), and adapters that are added, chosen, scaled, merged or
    turned off. Not seen are a write in place through `.data`, one to a tensor made in inference
    mode, and one to weights that are offloaded.
    """
    tensors = [
        (id(x), address(x), 0 if x.is_inference() else x._version, x.dtype, x.device)
        for x in (*model.parameters(), *model.buffers())
        if not x.is_meta  # offloaded: a new tensor after every forward
    ]
    adapters = [
        tuple(repr(getattr(module, name, None)) for name in ADAPTERS)
        for module in model.modules()
        if hasattr(module, ADAPTERS[0])
    ]
    return hash((*tensors, *adapters))


def address(tensor: Tensor) -> int:
    """Where its values lie; 0 for tensors that are made of others, as quantised ones are."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
