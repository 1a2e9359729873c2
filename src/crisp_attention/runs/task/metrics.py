"""Metrics of predictions and labels, as scikit-learn and GLUE compute them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]
PerExample = Callable[[np.ndarray, np.ndarray], np.ndarray]
NO_CLASS = -1  # the prediction where logits are not finite: no class, and wrong


@dataclass(frozen=True)
class Metric:
    """A number for the predictions of a split.

    Parameters
    ----------
    name
        As in metrics.json and in `crisp.finetune`'s `metric`.
    title
        As it is written in prose.
    score
        ``score(predictions, labels)``, each of one number for every example.
    higher_is_better
        Whether a model with a larger score is better.
    per_example
        Where the score is a mean over examples, what it is the mean of: ``per_example(predictions, labels)``.
    percent
        Whether it is shown as a percentage.

    Examples
    --------
    >>> ACCURACY.score(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    0.75
    >>> BINARY_F1.score(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    0.8
    """

    name: str
    title: str
    score: Score
    higher_is_better: bool = True
    per_example: PerExample | None = None
    percent: bool = False

    def shown(self, value: float | None) -> str:
        """The score as people read it."""
        if value is None or not np.isfinite(value):
            return "not finite"
        return f"{value:.1%}" if self.percent else f"{value:.3f}"


def _right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (predictions == labels).astype(float)


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions == labels))


def _binary_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0))


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    classes = np.setdiff1d(np.union1d(labels, predictions), [NO_CLASS])
    return float(f1_score(labels, predictions, labels=classes, average="macro", zero_division=0))


def _mcc(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(lambda: pearsonr(predictions, labels).statistic, predictions, labels)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(lambda: spearmanr(predictions, labels).statistic, predictions, labels)


def _correlation(compute: Callable[[], float], predictions: np.ndarray, labels: np.ndarray) -> float:
    if not np.isfinite(predictions).all():
        return float("nan")
    # a constant prediction is worth no more than chance
    return 0.0 if np.ptp(predictions) == 0 or np.ptp(labels) == 0 else float(compute())


def _rmse(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predictions.astype(float) - labels) ** 2)))


def class_accuracy(classes: Sequence[int]) -> Metric:
    """Accuracy on the examples of some classes, whatever classes are predicted for them.

    Examples
    --------
    >>> class_accuracy([1, 2]).score(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.6666666666666666
    """

    def per_example(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        counted = np.isin(labels, classes)
        return _right(predictions, labels) * counted / max(counted.mean(), 1 / len(labels))

    def score(predictions: np.ndarray, labels: np.ndarray) -> float:
        counted = np.isin(labels, classes)
        return float(_right(predictions, labels)[counted].mean()) if counted.any() else float("nan")

    title = "accuracy on the user's classes"
    return Metric(CLASS_ACCURACY, title, score, per_example=per_example, percent=True)


CLASS_ACCURACY = "class_accuracy"
ACCURACY = Metric("accuracy", "accuracy", _accuracy, per_example=_right, percent=True)
BINARY_F1 = Metric("f1", "F1", _binary_f1)  # of the second class
MACRO_F1 = Metric("f1", "macro F1", _macro_f1)  # the unweighted mean over the classes that occur
MCC = Metric("mcc", "MCC", _mcc)
PEARSON = Metric("pearson", "Pearson r", _pearson)
SPEARMAN = Metric("spearman", "Spearman r", _spearman)
RMSE = Metric("rmse", "RMSE", _rmse, higher_is_better=False)
ALL = (ACCURACY, MACRO_F1, MCC, PEARSON, SPEARMAN, RMSE)
NAMES = (*(each.name for each in ALL), CLASS_ACCURACY)
LOWER_IS_BETTER = ("loss", *(each.name for each in ALL if not each.higher_is_better))
