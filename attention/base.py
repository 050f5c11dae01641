"""The two kinds of parts that act on keys: attention edits and cache evictions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from sightline.attention.recorder import AttentionRecorder
from sightline.attention.reference import KeyWeights
from sightline.settings import Checked


class KeyPart(Checked):
    """What attention edits and cache evictions have in common.

    One that is `about_images` does nothing where a prompt has no image.
    """

    about_images = False

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing, whatever the model and the prompt."""
        return False

    @property
    def grows(self) -> bool:
        """Whether it acts on more keys with every answered token: then no one graph holds for two
        of them, and it runs eagerly where others are compiled."""
        return False

    def check(self, recorder: AttentionRecorder) -> None:
        """Raises `ValueError`, before the first forward, for what cannot be done here."""

    def records(self, recorder: AttentionRecorder) -> Mapping[int, frozenset[str]]:
        """By layer, what the recorder is to keep: "row", "groups", "mass", "columns", "looks",
        "chosen"."""
        return {}


class AttentionEdit(KeyPart, ABC):
    """Which keys weigh more or less in a layer: data, not code."""

    @abstractmethod
    def __call__(self, layer: int, recorder: AttentionRecorder) -> KeyWeights | None:
        """Weights of one layer's keys, of R rows; None leaves the layer alone."""


class CacheEviction(KeyPart, ABC):
    """Which keys leave the cache between two steps.

    `merges` puts the mean of what leaves in the place of its oldest member.
    """

    merges = False

    @abstractmethod
    def __call__(self, layer: int, recorder: AttentionRecorder) -> Tensor | None:
        """`[R, Hkv, K]` bool, true on the keys that stay: equally many in every row, head and
        layer. None: nothing leaves."""
