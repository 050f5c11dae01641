"""The range in which a setting is usually tried, noted beside its type."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchRange:
    """The range that papers sweep and users try; it is not a limit.

    Written as `alpha: Annotated[Strength, SearchRange(0, 3)]`. A slider runs through it; what a
    setting may be at all is said by its type, here `sightline.settings.Strength`.

    Args:
        low: The least value, one that the decoder takes.
        high: The greatest, one that it takes too.
    """

    low: float
    high: float

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"a range runs from low to high, got {self.low} and {self.high}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"
