"""Scores of resampled examples are those of sklearn and scipy on the examples repeated, and their bootstrap is fair."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef, root_mean_squared_error

from crisp_attention.studies.statistics import bootstrap_of_score, hierarchical_bootstrap
from crisp_attention.studies.statistics.scores import (
    binary_f1,
    macro_f1,
    matthews,
    pearson,
    repeating,
    rmse,
    spearman,
)

CLASSES = {
    binary_f1: lambda labels, predictions: f1_score(labels == 1, predictions == 1, zero_division=0),
    macro_f1: lambda labels, predictions: f1_score(labels, predictions, average="macro", zero_division=0),
    matthews: matthews_corrcoef,
}
NUMBERS = {
    pearson: lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    spearman: lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
    rmse: root_mean_squared_error,
}


def repeated(score, runs, labels, weights):
    drawn = [np.repeat(np.arange(len(labels)), each) for each in weights.T]
    return [[score(labels[each], run[each]) for each in drawn] for run in runs]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("score", CLASSES, ids=lambda score: score.__name__)
def test_scores_of_classes(score, classes):
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), random.integers(classes, size=56)])
    runs = np.where(random.random((3, len(labels))) < 0.6, labels, random.integers(classes, size=len(labels)))
    weights = random.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=20).T
    weights[:classes] += 1  # every class is in every draw
    found = score(runs, labels, weights.astype(float))
    assert found == pytest.approx(np.array(repeated(CLASSES[score], runs, labels, weights)))


@pytest.mark.parametrize("digits", [1, 12], ids=["ties", "no ties"])
@pytest.mark.parametrize("score", NUMBERS, ids=lambda score: score.__name__)
def test_scores_of_numbers(score, digits):
    random = np.random.default_rng(0)
    labels = (1000 + random.normal(size=80)).round(digits)
    runs = (labels + random.normal(size=(3, 80))).round(digits)
    weights = random.multinomial(80, np.full(80, 1 / 80), size=70).T
    found = score(runs, labels, weights.astype(float))
    assert found == pytest.approx(np.array(repeated(NUMBERS[score], runs, labels, weights)))


@pytest.mark.parametrize("score", [binary_f1, matthews, pearson, spearman], ids=lambda score: score.__name__)
def test_what_is_not_defined_is_0(score):
    labels = np.array([0, 1, 1, 0])
    assert score(np.zeros((1, 4), dtype=int), labels, np.ones((4, 1))) == 0


def test_a_score_that_is_a_mean_over_examples_has_the_bootstrap_of_the_mean():
    random = np.random.default_rng(0)
    labels = random.integers(2, size=300)
    ours, its = (np.where(random.random((4, 300)) < right, labels, 1 - labels) for right in (0.85, 0.8))
    accuracy = repeating(lambda predictions, labels: float(np.mean(predictions == labels)))
    expected = hierarchical_bootstrap((ours == labels).astype(int) - (its == labels), draws=2000)
    found = bootstrap_of_score(accuracy, ours, its, labels, draws=2000)
    assert found.interval.mean == pytest.approx(expected.interval.mean)
    assert found.interval == pytest.approx(expected.interval, abs=0.004)  # other draws
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.05)


def test_the_bootstrap_of_one_run_is_that_of_scipy():
    random = np.random.default_rng(0)
    labels = random.normal(size=200)
    ours, its = labels + 0.5 * random.normal(size=200), labels + random.normal(size=200)
    found = bootstrap_of_score(pearson, ours[None], its[None], labels, draws=4000)

    def difference(x, y, z, axis=-1):
        return stats.pearsonr(x, z, axis=axis).statistic - stats.pearsonr(y, z, axis=axis).statistic

    expected = stats.bootstrap(
        (ours, its, labels), difference, paired=True, method="percentile", n_resamples=4000, rng=1
    )
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.05)
    bounds = expected.confidence_interval
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high), abs=0.01)
