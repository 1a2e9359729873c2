"""Which columns of a data set are the inputs and which the label, and rows without an input."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, Value

from crisp_attention.errors import DataError, listed

STRINGS = {"string", "large_string"}
NOT_TEXT = ("label", "target", "class", "category")
IDENTIFIERS = {"id", "idx", "guid", "uuid", "uid", "index"}
INDEX = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__|level_\d+")  # as pandas calls its own
ADDED = ("labels", "index")
ROWS_FOR_A_VALUE = 10


@dataclass(frozen=True)
class Columns:
    label: str
    texts: tuple[str, ...]
    image: str | None
    unused: tuple[str, ...]  # columns that could have been inputs, and why they are none
    doubts: tuple[str, ...] = ()  # reservations about the inputs, in sentences

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.texts if self.image is None else (self.image,)

    @property
    def notes(self) -> tuple[str, ...]:
        kind = "image column" if self.image else "text column" if len(self.texts) == 1 else "text columns"
        unused = f"; not used: {listed(self.unused)}" if self.unused else ""
        return f"{kind}: {listed(self.inputs)}; label column: {self.label}{unused}", *self.doubts


def choose_columns(train: Dataset, texts: Sequence[str], image: str | None, label: str | None) -> Columns:
    """The named columns, and those detected because only one choice is left.

    What restates the label, is the same in every row or identifies it is an input only when it is named, or
    when there is nothing else. Raises DataError when a named column is missing or of another kind, or the
    choice is not clear.
    """
    features = train.features
    label = _label_column(features, label)
    doubts: list[str] = []
    if texts and image is not None:
        raise DataError(
            f"expected text columns or an image column; both are named: {listed(texts)} and {image}"
        )
    if texts:
        _check_texts(features, texts, label)
        unused = []
        reasons = {name: no_input(train, name, label) for name in texts}
        doubts = [f"the text column {name} {reason}" for name, reason in reasons.items() if reason]
    elif image is not None:
        _check_named(features, [image])
        if image not in _images(features):
            raise DataError(
                f"the column {image} is not an image column; the columns are {_described(features)}"
            )
        unused = _texts(features, label)
    else:
        texts, image, unused = _inputs(train, label)
    columns = Columns(label, tuple(texts), image, tuple(unused), tuple(doubts))
    clash = [name for name in columns.inputs if name in ADDED]
    if clash:
        raise DataError(
            f"input columns must not be named {listed(ADDED)}, as Crisp adds columns of these names; found {clash[0]}"
        )
    return columns


def check_columns(split: str, rows: Dataset, train: Dataset, columns: Iterable[str]) -> None:
    """Raises DataError when a column of the training split is missing from the split or of another type."""
    for name in columns:
        if name not in rows.features:
            raise DataError(
                f"the {split} split has no column {name}; its columns are {_described(rows.features)}"
            )
        expected, found = (_kind(part.features[name]) for part in (train, rows))
        if expected != found and not {expected, found} <= STRINGS:
            raise DataError(f"the {split} split's column {name} is {found}; expected {expected}, as in train")


def _label_column(features: Features, named: str | None) -> str:
    if named is not None:
        _check_named(features, [named])
        return named
    found = [name for name in ("label", "labels") if name in features]
    found = found or [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"expected one column named label or labels, or else one of class labels; found "
        f"{listed(found)} among the columns {_described(features)}; name it with label_column=NAME"
    )


def _inputs(train: Dataset, label: str) -> tuple[list[str], str | None, list[str]]:
    features = train.features
    candidates, images = _texts(features, label), _images(features)
    reasons = {}
    if len(candidates) + len(images) > 1:
        reasons = {name: reason for name in candidates if (reason := no_input(train, name, label))}
    texts = [name for name in candidates if name not in reasons]
    if not texts and not images:
        texts, reasons = candidates, {}
    unused = [f"{name}, which {reason}" for name, reason in reasons.items()]
    if 1 <= len(texts) <= 2:
        return texts, None, [*images, *unused]
    if texts:
        raise DataError(
            f"expected one or two text columns; found {listed(texts)}; name them with text_columns=NAMES"
        )
    if len(images) == 1:
        return [], images[0], unused
    if images:
        raise DataError(f"expected one image column; found {listed(images)}; name it with image_column=NAME")
    raise DataError(
        f"expected a text or image column besides the label column {label}; found the columns "
        f"{_described(features)}; name string columns with text_columns=NAMES"
    )


def _texts(features: Features, label: str) -> list[str]:
    strings = [name for name, feature in features.items() if name != label and _kind(feature) in STRINGS]
    return [
        name
        for name in strings
        if not any(word in name.lower() for word in NOT_TEXT)
        and _last_word(name) not in IDENTIFIERS
        and not INDEX.fullmatch(name)
    ]


def _images(features: Features) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, Image)]


def _last_word(name: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return words[-1].lower() if words else name


def _check_texts(features: Features, texts: Sequence[str], label: str) -> None:
    _check_named(features, texts)
    if len(texts) > 2 or len(set(texts)) < len(texts) or label in texts:
        raise DataError(
            f"expected one or two text columns besides the label column {label}; found {listed(texts)}"
        )
    for name in texts:
        if _kind(features[name]) not in STRINGS:
            raise DataError(f"expected strings in the text column {name}; found {_kind(features[name])}")


def _check_named(features: Features, names: Sequence[str]) -> None:
    for name in names:
        if name not in features:
            raise DataError(f"there is no column {name}; the columns are {_described(features)}")


def _described(features: Features) -> str:
    return listed(f"{name} ({_kind(feature)})" for name, feature in features.items())


def _kind(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def no_input(train: Dataset, column: str, label: str) -> str | None:
    """Why the strings of the column are not an input for a model, in words that follow "it"; None if they may be one.

    A column restates the label when each of its values goes with one label alone, and either there are as
    many values as labels, or each value stands in ten rows or more on average.
    """
    values = train.data.column(column)
    distinct = pc.count_distinct(values, mode="all").as_py()
    if len(train) < 2:
        return None
    if distinct == 1:
        return "is the same in every row"
    if distinct == len(train):
        codes = pc.match_substring_regex(values, r"^[!-~]*[0-9][!-~]*$")  # ASCII, a digit, no space
        return "is an identifier of the row" if pc.all(pc.fill_null(codes, False)).as_py() else None
    if not isinstance(train.features[label], Value | ClassLabel):
        return None
    classes = train.data.column(label)
    if pa.types.is_string(classes.type) or pa.types.is_large_string(classes.type):
        classes = pc.utf8_trim_whitespace(classes)
    table = pa.table({"value": values, "label": classes})
    labels = pc.count_distinct(classes, mode="all").as_py()
    pairs = len(table.group_by(["value", "label"]).aggregate([]))
    few = distinct == labels and len(train) >= 2 * distinct
    if labels > 1 and pairs == distinct and (few or len(train) >= ROWS_FOR_A_VALUE * distinct):
        return "restates the label"
    return None


def check_inputs(split: str, rows: Dataset, column: str) -> None:
    """Raises DataError when a row has no image, or a text that is missing or only white space."""
    values = rows.data.column(column)
    if isinstance(rows.features[column], Image):
        kind, blank = "image", pc.is_null(values)
    else:
        kind, blank = "text", pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True)
    count = pc.sum(blank).as_py()
    if count:
        raise DataError(
            f"the {split} split's column {column} has no {kind} in {count:,} of {len(rows):,} rows, the first of "
            f"them row {pc.index(blank, True).as_py()} (counting from 0); expected {kind} in every row"
        )
