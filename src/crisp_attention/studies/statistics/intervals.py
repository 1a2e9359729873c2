"""Means and differences with their confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

SEEDS_NEEDED = 3  # from two seeds the interval reaches 12.7 standard errors to each side, which says nothing


class Interval(NamedTuple):
    """A mean and its two-sided confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def standard_error(values: Sequence[float] | NDArray[np.floating]) -> float:
    """That of the mean of independent values."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean of independent values. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    sample = np.asarray(values, dtype=float)
    half = special.stdtrit(len(sample) - 1, (1 + confidence) / 2) * standard_error(sample)
    return Interval(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half))


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % `mean_interval` of values by seed; None for fewer than `SEEDS_NEEDED`."""
    return mean_interval(values) if len(values) >= SEEDS_NEEDED else None


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
    """t-interval of the mean of `values - baseline`, paired by position (the seed).

    Raises ValueError if the two are not equally long.
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need as many values as baselines, got {len(values)} and {len(baseline)}")
    return mean_interval((np.asarray(values) - np.asarray(baseline)).tolist(), confidence)
