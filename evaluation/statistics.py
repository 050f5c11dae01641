"""Intervals by bootstrap over units (scenes, images) that were answered together.

Answers about one scene are not independent of one another, so whole scenes are drawn again. Every
metric here is a ratio of two sums over scenes: an accuracy, an F1, a CHAIR, a mean. One draw of
weights serves all metrics and all decoders, which makes every difference a paired one.
"""

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95

BETTER, WORSE, HIGHER, LOWER = "better", "worse", "higher", "lower"
NOTHING_SHOWN = "no difference shown"


@dataclass(frozen=True, eq=False)
class Ratio:
    """A metric as the sum of `numerator` over the sum of `denominator`, each `[N]` by unit."""

    numerator: np.ndarray
    denominator: np.ndarray

    def __post_init__(self):
        if self.numerator.shape != self.denominator.shape or self.numerator.ndim != 1:
            raise ValueError(
                "numerator and denominator must both be [N], got shapes "
                f"{self.numerator.shape} and {self.denominator.shape}"
            )

    @property
    def value(self) -> float:
        """The metric itself; NaN where there was nothing to divide by."""
        return float(self.under(np.ones((1, len(self.numerator))))[0])

    def under(self, weights: np.ndarray) -> np.ndarray:
        """The metric under each row of weights: `[R, N]` -> `[R]`."""
        over = weights @ self.denominator
        return np.divide(
            weights @ self.numerator, over, out=np.full(len(weights), math.nan), where=over != 0
        )


@dataclass(frozen=True)
class Estimate:
    """A value between the ends of its interval. NaN where the metric is not defined."""

    value: float
    low: float
    high: float


def resample(units: int, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each unit is drawn in each of `count` resamples: `[R, N]`, rows sum to N."""
    if units < 1:
        raise ValueError(f"a bootstrap needs at least one unit, got {units}")
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=count).astype(np.float64)


def bootstrap(ratio: Ratio, weights: np.ndarray) -> Estimate:
    """The metric with its percentile interval over `weights` `[R, N]` from `resample`.

    Resamples in which the metric is not defined are left out. Where no unit differs from another
    the interval has no width, which is a limit of the bootstrap and no proof.
    """
    return estimate(ratio.value, ratio.under(weights))


def paired_difference(ratio: Ratio, base: Ratio, weights: np.ndarray) -> Estimate:
    """`ratio - base` over the same units, both under the same resamples."""
    return estimate(ratio.value - base.value, ratio.under(weights) - base.under(weights))


def verdict(difference: Estimate, better: str | None = None) -> str:
    """What the interval of a difference allows to be said, and nothing more.

    Args:
        difference: From `paired_difference`.
        better: "higher" or "lower"; None for a metric that has no good side.
    """
    if difference.low > 0:
        side = HIGHER
    elif difference.high < 0:
        side = LOWER
    else:
        return NOTHING_SHOWN
    if better is None:
        return side
    return BETTER if side == better else WORSE


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """A value with the percentile interval of its resamples `[R]`, those that are not NaN."""
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(value) or len(defined) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
