"""Whether a classifier is as sure as it is right."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

BINS = 15


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
