"""Means, differences and how sure they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and its two-sided confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean of independent values. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    sample = np.asarray(values, dtype=float)
    half = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * stats.sem(sample)
    return Interval(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half))


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
    """t-interval of the mean of `values - baseline`, paired by position (the seed).

    Raises ValueError if the two are not equally long.
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need as many values as baselines, got {len(values)} and {len(baseline)}")
    return mean_interval((np.asarray(values) - np.asarray(baseline)).tolist(), confidence)
