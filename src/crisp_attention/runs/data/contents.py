"""Columns that are no inputs by what is in them: they restate the label, or say nothing of their row."""

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

ROWS_FOR_A_VALUE = 10


def no_input(train: Dataset, column: str, label: str) -> str | None:
    """Why the strings of the column are not what a model is to read, in words that follow "it"; None if they may be.

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
