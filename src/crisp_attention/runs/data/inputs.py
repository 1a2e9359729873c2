"""Finding rows without an input."""

import pyarrow.compute as pc
from datasets import Dataset, Image

from crisp_attention.errors import DataError


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
