"""Class labels as numbers 0..n-1, learned from the training split."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from crisp_attention.errors import DataError, listed

Label = int | str
UNLABELLED = -1
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class LabelMap:
    ids: Mapping[Label, int]  # of the classes that occur in train
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def unlabelled(self, values: Sequence[Label | None]) -> bool:
        """Whether the split's labels stand for "not known": all missing, or all -1 and that is no class."""
        known = self._numbers()
        return all(
            value is None or (str(value) == str(UNLABELLED) and value not in known) for value in values
        )

    def encode(self, split: str, values: Sequence[Label | None]) -> np.ndarray:
        """The number of each row's class; a number is the same label whether written as a number or as text.

        Raises DataError for a missing label and one not in train.
        """
        labels = complete(split, values)
        known = self._numbers()
        bad = [row for row, value in enumerate(labels) if value not in known]
        if bad:
            unknown = sorted({repr(labels[row]) for row in bad})
            raise DataError(
                f"the {split} split has labels that are no class of train in {len(bad):,} of {len(labels):,} "
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
    return LabelMap(ids, names, tuple(notes))


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
