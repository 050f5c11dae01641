"""What is kept between calls, for as long as its owner lives."""

from collections import OrderedDict
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

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
