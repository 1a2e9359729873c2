"""Scores of examples that count a number of times each: what a resampled test set scores.

predictions: (runs, examples) and labels: (examples,), classes as numbers from 0 or real numbers. weights:
(examples, draws): how often each example is in each draw. A score gives (runs, draws) values; where it is not
defined, as a correlation with a constant is not, it is 0.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Score = Callable[[NDArray, NDArray, NDArray], NDArray[np.floating]]
BINS = 15  # of a calibration error
AT_ONCE = 64  # draws whose ranks are in the cache at the same time


def binary_f1(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """F1 of class 1."""
    return _f1(*_class_counts(predictions, labels, weights))[:, 1]


def macro_f1(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """The mean F1 of the classes that are in a draw."""
    right, predicted, true = _class_counts(predictions, labels, weights)
    return _f1(right, predicted, true).sum(axis=1) / (predicted + true > 0).sum(axis=1)


def matthews(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """Matthews' correlation coefficient, of any number of classes (Gorodkin 2004, equation 8)."""
    right, predicted, true = _class_counts(predictions, labels, weights)
    total = weights.sum(axis=0)
    together = right.sum(axis=1) * total - (predicted * true).sum(axis=1)
    left, right = (total**2 - (each**2).sum(axis=-2) for each in (predicted, true))
    return _correlation(together, left, right)


def pearson(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """Pearson's correlation, from the weighted moments."""
    left = predictions - predictions.mean(
        axis=1, keepdims=True
    )  # so that differences of squares lose no digits
    right = labels - labels.mean()
    total, b, bb = np.stack([np.ones_like(right), right, right**2]) @ weights
    a, aa, ab = (each @ weights for each in (left, left**2, left * right))
    return _correlation(total * ab - a * b, total * aa - a**2, total * bb - b**2)


def spearman(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """Spearman's correlation: Pearson's of the ranks that the examples have within each draw, ties shared."""
    groups = [_groups(each) for each in (labels, *predictions)]
    found = [
        _spearman(groups, np.ascontiguousarray(weights[:, start : start + AT_ONCE]))
        for start in range(0, weights.shape[1], AT_ONCE)
    ]
    return np.concatenate(found, axis=1)


def rmse(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
    """Root of the mean squared error."""
    return np.sqrt((predictions - labels) ** 2 @ weights / weights.sum(axis=0))


def repeating(score: Callable[[NDArray, NDArray], float]) -> Score:
    """Any score of predictions and labels, computed draw by draw on examples that are repeated."""

    def weighted(predictions: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.floating]:
        drawn = [np.repeat(np.arange(len(labels)), each.astype(int)) for each in weights.T]
        return np.array([[score(run[each], labels[each]) for each in drawn] for run in predictions])

    return weighted


def _class_counts(predictions: NDArray, labels: NDArray, weights: NDArray) -> Sequence[NDArray[np.floating]]:
    """Right answers and predictions of each class, (runs, classes, draws), and examples of it, (classes, draws)."""
    classes = np.arange(max(predictions.max(), labels.max(), 1) + 1)[:, None]
    predicted, true = (predictions[:, None] == classes).astype(float), (labels == classes).astype(float)
    return (predicted * true) @ weights, predicted @ weights, true @ weights


def _f1(right: NDArray, predicted: NDArray, true: NDArray) -> NDArray[np.floating]:
    both = predicted + true
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)


def _groups(values: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The order of the values, the last place of each run of equal ones, and the run in which each value is."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(values, kind="stable"), np.cumsum(counts) - 1, group


def _spearman(groups: Sequence[tuple[NDArray, NDArray, NDArray]], weights: NDArray) -> NDArray[np.floating]:
    middle = (weights.sum(axis=0) + 1) / 2
    true, *runs = (_ranks(each, weights) - middle for each in groups)
    weighted = weights * true
    varies = np.einsum("ed,ed->d", weighted, true)
    return np.stack(
        [
            _correlation(
                np.einsum("ed,ed->d", weighted, each), np.einsum("ed,ed,ed->d", weights, each, each), varies
            )
            for each in runs
        ]
    )


def _ranks(groups: tuple[NDArray, NDArray, NDArray], weights: NDArray) -> NDArray[np.floating]:
    """The mean rank of each example among all that are drawn, (examples, draws)."""
    order, last, group = groups
    ends = np.cumsum(weights[order], axis=0)[last]  # how many drawn values are at most as large
    below = np.concatenate([np.zeros_like(ends[:1]), ends[:-1]])
    return ((below + ends + 1) / 2)[group]


def _correlation(
    together: NDArray[np.floating], left: NDArray[np.floating], right: NDArray[np.floating]
) -> NDArray[np.floating]:
    product = left * right
    varies = (left > 0) & (right > 0)
    return np.divide(together, np.sqrt(product), out=np.zeros_like(together), where=varies)


def expected_calibration_error(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Expected calibration error, in [0, 1], of `logits` (examples, classes) for `labels` (examples,).

    The gap between mean confidence (the largest softmax probability) and accuracy in 15 bins of equal
    width, weighted by their examples (Guo et al. 2017, "On calibration of modern neural networks", eq. 3).
    """
    probabilities = softmax(np.asarray(logits, dtype=float), axis=1)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.ceil(confidence * BINS).astype(int)
    return float(np.abs(np.bincount(bins, weights=confidence - right)).sum() / len(confidence))
