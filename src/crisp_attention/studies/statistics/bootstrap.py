"""Resampling where every seed answers the same examples.

A drawn example is drawn for all seeds: the design is crossed, and both its sides are samples (the pigeonhole
bootstrap, Owen 2007, "The pigeonhole bootstrap", section 3). It is fair to the variation of examples, cautious
with that of example by seed, and not with that of few seeds: with 5 seeds that alone vary, a nominal 95 % interval
covers about 84 %. The p is twice the smaller tail, (count + 1) / (draws + 1). The draws are the same at every call.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_attention.studies.statistics.intervals import Interval
from crisp_attention.studies.statistics.scores import Score

DRAWS = 10_000
CHUNK = 1_000


class Bootstrap(NamedTuple):
    """Percentile interval, two-sided p of no difference, standard error of the mean."""

    interval: Interval
    p: float
    standard_error: float


def hierarchical_bootstrap(differences: NDArray, confidence: float = 0.95, draws: int = DRAWS) -> Bootstrap:
    """The mean of `differences`, (seeds, examples), with seeds and examples drawn with replacement."""
    # examples with the same column are alike, so that counts of few kinds stand for thousands of examples
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    (seeds, examples), kinds = np.shape(differences), kinds.astype(float)
    totals = np.concatenate(  # exact where the differences are whole numbers
        [(of_seeds * (of_kinds @ kinds.T)).sum(axis=1) for of_kinds, of_seeds in _drawn(counts, seeds, draws)]
    )
    return _summary(float(np.mean(differences)), totals, totals / (seeds * examples), confidence)


def bootstrap_of_score(
    score: Score,
    predictions: NDArray,
    baseline: NDArray,
    labels: NDArray,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> Bootstrap:
    """The mean over seeds of the score of `predictions` less that of `baseline`, both (seeds, examples).

    For scores that are not means over examples: the same draws of seeds and examples, and every drawn test set
    is scored as a whole.
    """
    seeds, examples = predictions.shape
    sides = np.concatenate([predictions, baseline])
    observed = score(sides, labels, np.ones((examples, 1)))[:, 0]
    kinds, counts = np.unique(np.vstack([labels, sides]), axis=1, return_counts=True)
    of_sides, of_labels = kinds[1:].astype(sides.dtype), kinds[0].astype(labels.dtype)
    means = []
    for of_kinds, of_seeds in _drawn(counts, seeds, draws):
        values = score(of_sides, of_labels, np.ascontiguousarray(of_kinds.T, dtype=float))
        means.append((of_seeds * (values[:seeds] - values[seeds:]).T).sum(axis=1) / seeds)
    found = np.concatenate(means)
    mean = float(np.mean(observed[:seeds] - observed[seeds:]))
    return _summary(mean, found, found, confidence)


def _drawn(counts: NDArray, seeds: int, draws: int) -> Iterator[tuple[NDArray, NDArray]]:
    """How often each kind of example, (draws, kinds), and each seed, (draws, seeds), is drawn; by chunks."""
    random, examples = np.random.default_rng(0), counts.sum()
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        of_kinds = random.multinomial(examples, counts / examples, size)
        yield of_kinds, random.multinomial(seeds, np.full(seeds, 1 / seeds), size)


def _summary(mean: float, signed: NDArray, means: NDArray, confidence: float) -> Bootstrap:
    tail = min(np.sum(signed <= 0), np.sum(signed >= 0))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = min(1.0, float(2 * (tail + 1) / (len(means) + 1)))
    return Bootstrap(Interval(mean, float(low), float(high)), p, float(means.std(ddof=1)))
