"""Class labels as numbers 0..n-1, learned from the training split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from crisp_attention.training.data.error import DataError, listed

Label = int | str
UNLABELLED = -1


@dataclass(frozen=True)
class LabelMap:
    ids: Mapping[Label, int]  # of the classes that occur in train
    names: tuple[str, ...]
    note: str | None

    def unlabelled(self, values: Sequence[Label | None]) -> bool:
        """Whether the split's labels stand for "not known": all missing, or all -1 and that is no class."""
        return all(value is None or (value == UNLABELLED and value not in self.ids) for value in values)

    def encode(self, split: str, values: Sequence[Label | None]) -> np.ndarray:
        """The number of each row's class. Raises DataError for a missing label and one not in train."""
        labels = complete(split, values)
        bad = [row for row, value in enumerate(labels) if value not in self.ids]
        if bad:
            unknown = sorted({repr(labels[row]) for row in bad})
            raise DataError(
                f"the {split} split has labels that are no class of train in {len(bad):,} of {len(labels):,} "
                f"rows, the first of them row {bad[0]} (counting from 0): {listed(unknown)}; "
                f"expected {listed(map(repr, self.ids))}"
            )
        return np.array([self.ids[label] for label in labels], dtype=np.int64)


def learn_labels(train: Dataset, column: str, values: Sequence[Label]) -> LabelMap:
    """Number the classes of train: class labels and ints 0..n-1 as they are, others in sorted order.

    Raises DataError when there is only one class.
    """
    feature = train.features[column]
    found = set(values)
    if len(found) < 2:
        raise DataError(
            f"expected at least two classes in train; all {len(values):,} rows have the label {values[0]!r}"
        )
    if isinstance(feature, ClassLabel):
        return LabelMap({n: i for i, n in enumerate(feature.names) if n in found}, tuple(feature.names), None)
    classes = sorted(found)
    ids = {value: number for number, value in enumerate(classes)}
    same = classes == list(ids.values()) and not isinstance(classes[0], bool)
    changes = listed(f"{value!r} -> {number}" for value, number in ids.items())
    return LabelMap(ids, tuple(map(str, classes)), None if same else f"labels mapped: {changes}")


def label_values(split: str, rows: Dataset, column: str) -> list[Label | None]:
    """Each row's label, class labels by name, None where it is missing.

    Raises DataError for labels that are not ints, bools, strings or class labels.
    """
    feature = rows.features[column]
    values = rows[column][:]
    if isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names)) | {UNLABELLED: None}
        return [names.get(value, value) for value in values]
    kind = feature.pa_type if isinstance(feature, Value) else None
    if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return [value if value and value.strip() else None for value in values]
    values = [None if value != value else value for value in values]  # NaN: a missing label among ints
    if None in values or (kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))):
        return values
    wrong = f"found {feature} in the {split} split's column {column}, such as {values[0]!r} in row 0"
    if kind is not None and pa.types.is_floating(kind):
        raise DataError(f"expected labels that are classes; regression is not supported; {wrong}")
    raise DataError(f"expected labels that are ints, bools, strings or class labels; {wrong}")


def complete(split: str, values: Sequence[Label | None]) -> list[Label]:
    """The labels when no row is without one. Raises DataError otherwise."""
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"the {split} split has no label in {len(missing):,} of {len(values):,} rows, the first of them "
            f"row {missing[0]} (counting from 0); expected a label in every row"
        )
    return [value for value in values if value is not None]
