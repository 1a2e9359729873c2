"""Labels as what a model learns: classes as 0..n-1, learned from the training split, or numbers as they are."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from crisp_attention.errors import DataError, listed
from crisp_attention.runs.task.target import Classification, Regression, Target

Label = int | str
UNLABELLED = -1
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Classes:
    """The classes of the training split."""

    ids: Mapping[Label, int]  # of the classes that occur in train
    names: tuple[str, ...]
    notes: tuple[str, ...]
    are_classes = True

    @property
    def target(self) -> Target:
        return Classification(self.names)

    def encode(self, split: str, rows: Dataset, column: str) -> np.ndarray | None:
        """The number of each row's class; a number is the same label whether written as a number or as text.

        None for a split without labels: all missing, or all -1 and that is no class. Raises DataError for a
        missing label and one not in train.
        """
        values, known = label_values(split, rows, column), self._numbers()
        if all(value is None or (str(value) == str(UNLABELLED) and value not in known) for value in values):
            return None
        labels = complete(split, values)
        bad = [row for row, label in enumerate(labels) if label not in known]
        if bad:
            unknown = sorted({repr(labels[row]) for row in bad})
            raise DataError(
                f"the {split} split has labels that are not classes of train in {len(bad):,} of {len(labels):,} "
                f"rows, the first of them row {bad[0]} (counting from 0): {listed(unknown)}; "
                f"expected {listed(map(repr, self.ids))}"
            )
        return np.array([known[label] for label in labels], dtype=np.int64)

    def _numbers(self) -> dict[Label, int]:
        known: dict[Label, int] = {}
        for label, number in self.ids.items():
            text = str(label)
            known |= {text: number} | ({int(text): number} if _WHOLE.fullmatch(text) else {})
        return known | dict(self.ids)


@dataclass(frozen=True)
class Numbers:
    """Labels that are numbers to predict.

    `may_be_minus_one`: whether -1 is one of them, and not the sign of a split without labels.
    """

    may_be_minus_one: bool
    notes: tuple[str, ...]
    are_classes = False

    @property
    def target(self) -> Target:
        return Regression()

    def encode(self, split: str, rows: Dataset, column: str) -> np.ndarray | None:
        """The numbers in float32; None for a split without labels: all missing, or all -1 and train has no such number.

        Raises DataError for labels that are not numbers, for a missing one and for an infinite one.
        """
        values = _number_values(split, rows, column)
        if all(value is None or (value == UNLABELLED and not self.may_be_minus_one) for value in values):
            return None
        numbers = np.array(complete(split, values), dtype=np.float32)
        if not np.isfinite(numbers).all():
            row = int(np.argmin(np.isfinite(numbers)))
            raise DataError(
                f"expected finite labels; the {split} split has {values[row]} in row {row} (counting from 0)"
            )
        return numbers


def _number_values(split: str, rows: Dataset, column: str) -> list[float | None]:
    feature = rows.features[column]
    kind = feature.pa_type if isinstance(feature, Value) else None
    if kind is None or not any(
        test(kind) for test in (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)
    ):
        raise DataError(
            f"expected numbers, as in train, in the {split} split's column {column}; found {feature}, such as "
            f"{rows[0][column]!r} in row 0"
        )
    return [None if value is None or value != value else float(value) for value in rows[column][:]]


def learn_labels(splits: Mapping[str, Dataset], column: str) -> Classes | Numbers:
    """What the labels of train are, in the splits that have the column.

    Floats are numbers to predict; ints, bools, strings and class labels are classes. Raises DataError for other
    labels, for a missing one, and when all labels are the same.
    """
    train = splits["train"]
    feature = train.features[column]
    if isinstance(feature, Value) and pa.types.is_floating(feature.pa_type):
        return _learn_numbers(train, column)
    classes = _learn_classes(train, column, complete("train", label_values("train", train, column)))
    labelled = [rows for rows in splits.values() if column in rows.features]
    if cut := sorted({label for rows in labelled for label in spaced(rows, column)}):
        note = f"spaces around labels removed: {listed(map(repr, cut))}"
        return replace(classes, notes=(*classes.notes, note))
    return classes


def _learn_numbers(train: Dataset, column: str) -> Numbers:
    values = _number_values("train", train, column)
    numbers = np.array(complete("train", values))
    if np.ptp(numbers) == 0:
        raise DataError(
            f"expected different labels in train; all {len(values):,} rows have the label {values[0]!r}"
        )
    note = f"labels are numbers to predict (regression), from {numbers.min():g} to {numbers.max():g}"
    if (numbers == np.rint(numbers)).all():
        note += "; all are whole numbers: if they are classes, save them as integers"
    return Numbers(bool((numbers == UNLABELLED).any()), (note,))


def _learn_classes(train: Dataset, column: str, values: Sequence[Label]) -> Classes:
    """Number the classes of train: class labels and ints 0..n-1 as they are, others in sorted order.

    Raises DataError when there is only one class.
    """
    feature = train.features[column]
    found = set(values)
    if len(found) < 2:
        raise DataError(
            f"expected at least two classes in train; all {len(values):,} rows have the label {values[0]!r}"
        )
    classes: list[Label]
    if isinstance(feature, ClassLabel):
        classes = list(dict.fromkeys(name.strip() for name in feature.names))
        ids = {label: number for number, label in enumerate(classes) if label in found}
        notes = []
    else:
        classes = sorted(found)
        ids = {label: number for number, label in enumerate(classes)}
        same = classes == list(ids.values()) and not isinstance(classes[0], bool)
        changes = listed(f"{label!r} -> {number}" for label, number in ids.items())
        notes = [] if same else [f"labels mapped: {changes}"]
    names = tuple(map(str, classes))
    folded = Counter(name.casefold() for name in names)
    if alike := [repr(name) for name in names if folded[name.casefold()] > 1]:
        notes.append(f"classes that differ only in capital letters: {listed(alike)}")
    return Classes(ids, names, tuple(notes))


def spaced(rows: Dataset, column: str) -> list[str]:
    """The labels of the split, as they are written, that have spaces around them."""
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        labels = feature.names
    else:
        labels = rows.unique(column) if isinstance(feature, Value) else []
    return sorted(label for label in labels if isinstance(label, str) and label.strip() not in ("", label))


def label_values(split: str, rows: Dataset, column: str) -> list[Label | None]:
    """Each row's label without spaces around it, class labels by name, None where it is missing.

    Raises DataError for labels that are not ints, bools, strings or class labels.
    """
    feature = rows.features[column]
    values = rows[column][:]
    if isinstance(feature, ClassLabel):
        names = {number: name.strip() for number, name in enumerate(feature.names)} | {UNLABELLED: None}
        return [names.get(value, value) for value in values]
    kind = feature.pa_type if isinstance(feature, Value) else None
    if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return [(value or "").strip() or None for value in values]
    values = [None if value != value else value for value in values]  # NaN: a missing label among ints
    if None in values or (kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))):
        return values
    also = "or floats to predict" if split == "train" else "as in train"
    raise DataError(
        f"expected labels that are ints, bools, strings or class labels, {also}; found {feature} in the {split} "
        f"split's column {column}, such as {values[0]!r} in row 0"
    )


def complete(split: str, values: Sequence[Any]) -> list[Any]:
    """The labels when no row is without one. Raises DataError otherwise."""
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"the {split} split has no label in {len(missing):,} of {len(values):,} rows, the first of them "
            f"row {missing[0]} (counting from 0); expected a label in every row"
        )
    return [value for value in values if value is not None]
