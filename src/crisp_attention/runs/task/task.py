"""A data set, ready for fine-tuning."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crisp_attention.runs.task.target import Target

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Task:
    """A data set, and what a model has to predict from it.

    Attributes
    ----------
    splits
        "train", "validation" and, when labelled, "test", each with the input columns, "labels" (classes 0..n-1,
        or numbers) and "index", the row number in the split as it was read.
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
