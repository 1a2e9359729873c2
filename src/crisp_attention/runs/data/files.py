"""Reading the files of one split as they are now, whatever an earlier run left in the cache of `datasets`."""

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from crisp_attention.errors import DataError, first_line, listed
from crisp_attention.runs.data.delimited import SEPARATORS, ending_of, read_delimited

BUILDERS = {"parquet": "parquet", "jsonl": "json", "json": "json"}
FORMATS = [*BUILDERS, *SEPARATORS, *(f"{ending}.gz" for ending in ("jsonl", "json", *SEPARATORS))]
# The default fails on empty parquet.
OPTIONS: dict[str, dict[str, Any]] = {"parquet": {"batch_size": 10_000}, "json": {}}


def read_files(split: str, files: Sequence[Path]) -> Dataset:
    """The rows of the files, all of one format. Raises DataError for files without rows or that cannot be read."""
    for file in files:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty (0 bytes): expected the rows of the {split} split")
    try:
        return _load(split, files)
    except DataError:
        if len(files) > 1:  # find the one to blame
            for file in files:
                read_files(split, [file])
        raise


def is_delimited(file: Path) -> bool:
    """Whether the file is csv or tsv, whose values have no types."""
    return ending_of(file) in SEPARATORS


def _load(split: str, files: Sequence[Path]) -> Dataset:
    try:
        digest = _digest(files)
        if is_delimited(files[0]):
            return read_delimited(split, files, digest)
        builder = BUILDERS[ending_of(files[0])]
        patterns = {split: [glob.escape(str(file)) for file in files]}
        # Without a name for what is in the files, the cache goes by their paths and times of change.
        return load_dataset(builder, digest, data_files=patterns, split=split, **OPTIONS[builder])
    except Exception as error:  # the library lets through whatever its readers raise
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        if "corresponds to no data" in str(error):
            raise DataError(
                f"the {split} split is empty: expected rows in {listed(files)}; found none"
            ) from error
        raise DataError(f"cannot read the {split} split from {listed(files)}: {first_line(error)}") from error


def _digest(files: Sequence[Path]) -> str:
    """A name for the contents of the files."""
    whole = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "blake2b").digest())
    return whole.hexdigest()
