"""What is to be predicted of every example, one of some classes or a number, and the data for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from crisp_attention.errors import OptionError
from crisp_attention.runs.task.metrics import (
    ACCURACY,
    BINARY_F1,
    MACRO_F1,
    MCC,
    NO_CLASS,
    PEARSON,
    RMSE,
    SPEARMAN,
    Metric,
    class_accuracy,
)

AMONG_CLASSES = "among_classes"

if TYPE_CHECKING:
    from datasets import Dataset


class Target(ABC):
    """What a data set requires of a model's head: its outputs, its loss, and its metrics.

    Attributes
    ----------
    kind
        Its name in files.
    label_names
        The name of class i; none for numbers.

    Examples
    --------
    >>> Target.from_dict({"kind": "classification", "label_names": ["no", "yes"]}).outputs
    2
    """

    kind: ClassVar[str]
    label_names: tuple[str, ...] = ()

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics, the main one first."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many outputs the model has for an example."""

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """Fields of the configuration of a model with a head for it; they choose the loss too."""

    @abstractmethod
    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """One prediction for every row of a model's outputs."""

    @abstractmethod
    def columns(self, logits: np.ndarray) -> dict[str, Any]:
        """What a table of predictions holds besides the labels."""

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of all that `scores` computes."""
        return tuple(each.name for each in self.metrics)

    def metric(self, name: str | None, option: str = "metric") -> Metric:
        """The metric of that name, the main one for None. Raises OptionError for a metric of another task."""
        for each in self.metrics:
            if name in (None, each.name):
                return each
        *others, last = (each.name for each in self.metrics)
        raise OptionError(
            f"{option} must be {', '.join(others)} or {last} for {self.kind}, which the labels ask for; got {name}",
            option,
        )

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric of a model's outputs."""
        predictions = self.predicted(logits)
        return {each.name: each.score(predictions, labels) for each in self.metrics}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {"kind": self.kind, "label_names": list(self.label_names)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Target":
        """The inverse of `to_dict`; files that name no kind are of classes."""
        if data.get("kind") == Regression.kind:
            return Regression()
        return Classification(tuple(data["label_names"]), tuple(data.get("classes", ())))


@dataclass(frozen=True)
class Classification(Target):
    """One of some classes. F1 is that of the second of two classes, and of more their unweighted mean.

    Attributes
    ----------
    classes
        Those that a user needs; empty for all. The main metric is then the accuracy on their examples, and a further
        score is the same with the outputs of these classes alone.

    Examples
    --------
    >>> [each.title for each in Classification(("no", "yes")).metrics]
    ['accuracy', 'F1', 'MCC']
    """

    label_names: tuple[str, ...]
    classes: tuple[int, ...] = ()
    kind: ClassVar[str] = "classification"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        own = (class_accuracy(self.classes),) if self.classes else ()
        return *own, ACCURACY, BINARY_F1 if len(self.label_names) == 2 else MACRO_F1, MCC

    @property
    def scored(self) -> tuple[str, ...]:
        return *super().scored, *([AMONG_CLASSES] if self.classes else [])

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        found = super().scores(logits, labels)
        if self.classes:
            among = np.full_like(logits, -np.inf)
            among[:, self.classes] = logits[:, self.classes]
            predictions = np.where(np.isfinite(logits).all(axis=-1), among.argmax(axis=-1), NO_CLASS)
            found[AMONG_CLASSES] = self.metrics[0].score(predictions, labels)
        return found

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | ({"classes": list(self.classes)} if self.classes else {})

    @property
    def outputs(self) -> int:
        return len(self.label_names)

    def configuration(self) -> dict[str, Any]:
        return {
            "num_labels": self.outputs,
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: i for i, name in enumerate(self.label_names)},
            "problem_type": "single_label_classification",
        }

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        # argmax would call a row of NaN the first class
        return np.where(np.isfinite(logits).all(axis=-1), np.argmax(logits, axis=-1), NO_CLASS)

    def columns(self, logits: np.ndarray) -> dict[str, Any]:
        return {"prediction": self.predicted(logits), "logits": list(logits)}


@dataclass(frozen=True)
class Regression(Target):
    """A number, learned by its squared error.

    Examples
    --------
    >>> Regression().metric(None).name
    'pearson'
    """

    kind: ClassVar[str] = "regression"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return PEARSON, SPEARMAN, RMSE

    @property
    def outputs(self) -> int:
        return 1

    def configuration(self) -> dict[str, Any]:
        return {
            "num_labels": 1,
            "id2label": {0: "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "problem_type": "regression",
        }

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        return logits[..., 0]

    def columns(self, logits: np.ndarray) -> dict[str, Any]:
        return {"prediction": self.predicted(logits)}


@dataclass(frozen=True)
class Task:
    """A data set, and what a model has to predict from it.

    Attributes
    ----------
    splits
        "train", "validation" and, when labelled, "test", each with the input columns, "labels" (classes 0..n-1,
        or numbers) and "index", the row number in the split as it was read. Where "train" has the classes of a user
        alone, "train of every class" has all.
    text_columns
        One or two, none for images.
    image_column
        The images' column, None for text.
    target
        What is to be predicted, and the metrics.
    notes
        Sentences for the user: the columns found and what was done to the labels and splits.

    Examples
    --------
    >>> from crisp_attention.runs.data import load_task
    >>> from crisp_attention.runs.spec import Data
    >>> task = load_task(Data(source="reviews"))
    >>> task.text_columns, task.label_names, len(task.splits["train"])
    (('text',), ('0', '1'), 48)
    """

    splits: "dict[str, Dataset]"
    text_columns: tuple[str, ...]
    image_column: str | None
    target: Target
    notes: tuple[str, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of class i; none where numbers are predicted."""
        return self.target.label_names
