"""Resampling where every seed answers the same examples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_attention.studies.statistics.intervals import Interval

DRAWS = 10_000
CHUNK = 1_000


class Bootstrap(NamedTuple):
    """Percentile interval, two-sided p of no difference, standard error of the mean."""

    interval: Interval
    p: float
    standard_error: float


def hierarchical_bootstrap(
    differences: NDArray[np.integer], confidence: float = 0.95, draws: int = DRAWS
) -> Bootstrap:
    """The mean of `differences`, (seeds, examples), drawing seeds and examples anew, with replacement.

    A drawn example is drawn for all seeds: the design is crossed, and both its sides are samples (the
    pigeonhole bootstrap, Owen 2007, "The pigeonhole bootstrap", section 3). It is fair to the variation
    of examples, cautious with that of example by seed, and not with that of few seeds: with 5 seeds that
    alone vary, a nominal 95 % interval covers about 84 %. The p is twice the smaller tail,
    (count + 1) / (draws + 1). The draws are the same at every call.
    """
    random = np.random.default_rng(0)
    # examples with the same column are alike, so that counts of few kinds stand for thousands of examples
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    (seeds, examples), kinds = np.shape(differences), kinds.astype(float)
    totals = np.empty(draws)  # exact: sums of integers
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        of_kinds = random.multinomial(examples, counts / examples, size)
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size)
        totals[start : start + size] = (of_seeds * (of_kinds @ kinds.T)).sum(axis=1)
    tail = min(np.sum(totals <= 0), np.sum(totals >= 0))
    means = totals / (seeds * examples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    interval = Interval(float(np.mean(differences)), float(low), float(high))
    return Bootstrap(interval, min(1.0, float(2 * (tail + 1) / (draws + 1))), float(means.std(ddof=1)))
