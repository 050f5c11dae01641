"""Counts what makes the host wait for the device, on any device."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result the host reads, or whose shape depends on values.
READ = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero"}
READ |= {"_unique2", "unique_consecutive", "unique_dim"}
# Calls of Python that read tensors, or copy from the host (pageable memory: the host waits).
CALLED = {"__array__", "as_tensor", "cpu", "from_numpy", "new_tensor", "numpy", "tensor", "tolist"}


class Operations(TorchDispatchMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READ:
            self.counts[name] += 1
        elif name in ("index", "index_put", "index_put_") and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in args[1]
        ):
            self.counts["index by a mask"] += 1
        elif name == "repeat_interleave" and func._overloadname != "self_int":
            self.counts["repeats in a tensor"] += 1
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in CALLED:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class SyncCounter:
    """`with SyncCounter() as counts:` counts syncs by name."""

    def __enter__(self):
        self.counts = Counter()
        self.modes = Calls(self.counts), Operations(self.counts)
        for mode in self.modes:
            mode.__enter__()
        return self.counts

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)
