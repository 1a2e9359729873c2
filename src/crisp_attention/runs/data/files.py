"""Reading the current contents of one split's files, whatever the cache of `datasets` holds; csv and tsv strictly."""

import csv
import glob
import gzip
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value, load_dataset
from datasets.fingerprint import Hasher

from crisp_attention.errors import DataError, first_line, listed

SEPARATORS = {"csv": ",", "tsv": "\t"}
BUILDERS = {"parquet": "parquet", "jsonl": "json", "json": "json"}
FORMATS = [*BUILDERS, *SEPARATORS, *(f"{ending}.gz" for ending in ("jsonl", "json", *SEPARATORS))]
# The default fails on empty parquet.
OPTIONS: dict[str, dict[str, Any]] = {"parquet": {"batch_size": 10_000}, "json": {}}
OTHER_SEPARATORS = ("\t", ";", "|", ",")
BATCH = 10_000
INTEGER = r"^(0|-?[1-9]\d{0,18})$"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
DIGITS = r"^\d+$"
BOOLEAN = r"^(True|False|true|false|TRUE|FALSE)$"


def read_files(split: str, files: Sequence[Path]) -> Dataset:
    """The rows of the files, all of one format. Raises DataError for files without rows or that cannot be read."""
    for file in files:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty (0 bytes): expected the rows of the {split} split")
    try:
        return _load(split, files)
    except DataError:
        if len(files) > 1:  # find the file at fault
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
    except Exception as error:  # the library passes on any error of its readers
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


def read_delimited(split: str, files: Sequence[Path], digest: str) -> Dataset:
    """The rows of the files as strings, None where a field is empty; kept in the cache of `datasets` under `digest`.

    Raises DataError for a header that names a column twice, a row that is not as wide as the header, quotes that
    do not match and text that is not UTF-8.
    """
    code = Hasher.hash(inspect.getsource(sys.modules[__name__]))
    name = f"{split}-{ending_of(files[0])}-{digest}"
    builder = Delimited(config_name=name, hash=code, split=split, files=tuple(map(str, files)))
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def typed(splits: Mapping[str, Dataset], untyped: Sequence[str]) -> dict[str, Dataset]:
    """The splits with the columns of those `untyped` as ints, bools or floats where all their values are such.

    A column is of one type in all splits. It stays text where the digits of a value would not come back
    from a number, as in 007, and where a split that has types says that it is text.
    """
    found = dict(splits)
    for name in dict.fromkeys(name for split in untyped for name in splits[split].column_names):
        parts = [split for split in untyped if name in splits[split].features]
        others = [rows.features.get(name) for split, rows in splits.items() if split not in untyped]
        if any(isinstance(other, Value) and "string" in other.dtype for other in others):
            continue
        kind = _kind([splits[split].data.column(name) for split in parts])
        for split in parts if kind else ():
            found[split] = found[split].cast_column(name, Value(kind))
    return found


class Delimited(datasets.ArrowBasedBuilder):
    """csv and tsv as the library `datasets` reads and caches the formats that it knows."""

    def __init__(self, *, split: str, files: Sequence[str], **given: Any) -> None:
        self.split, self.files = split, files
        super().__init__(**given)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(self.split, {"files": list(self.files)})]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        batches = 0
        for number, file in enumerate(map(Path, files)):
            with _long_fields():
                rows = _rows(file)
                names = next(rows)
                while batch := list(islice(rows, BATCH)):
                    columns = [[cell or None for cell in column] for column in zip(*batch, strict=True)]
                    arrays = [pa.array(column, pa.string()) for column in columns]
                    yield (number, batches), pa.Table.from_arrays(arrays, names)
                    batches += 1
        if not batches:
            raise DataError(f"the {self.split} split is empty: expected rows in {listed(files)}; found none")


def _rows(file: Path) -> Iterator[list[str]]:
    """The names of the columns, then every row. Raises DataError for what `read_delimited` says."""
    separator = SEPARATORS[ending_of(file)]
    plain = separator == "\t" and _quotes_are_text(file)
    names: list[str] = []
    line = 1
    with _opened(file) as lines:
        reader = csv.reader(
            lines,
            delimiter=separator,
            quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            strict=True,
        )
        try:
            for cells in reader:
                if not names and cells:
                    names = _names(file, cells)
                    yield names
                elif cells and len(cells) != len(names):
                    raise DataError(
                        f"{file}, line {line}: expected {len(names)} fields, as in the header ({listed(names)}); "
                        f"found {len(cells)}: {listed(map(repr, cells))}; a field that holds the separator or a line "
                        f"break needs quotes around it"
                    )
                elif cells:
                    yield cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{file}, line {line}: quotes that do not match: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, after line {line}: expected text in UTF-8: {error}") from error
    if not names:
        raise DataError(f"{file} is empty: expected a header and rows; found none")


def _names(file: Path, header: Sequence[str]) -> list[str]:
    """The header's names; a column without one gets the name that pandas would give it."""
    if len(header) == 1 and (other := next((each for each in OTHER_SEPARATORS if each in header[0]), None)):
        expected = "commas" if ending_of(file) == "csv" else "tabs"
        raise DataError(
            f"{file}: expected columns separated by {expected}; found the header {header[0]!r}, separated by {other!r}"
        )
    names = [cell.strip() or f"Unnamed: {number}" for number, cell in enumerate(header)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{file}: expected each column once in the header; found {listed(twice)} more than once"
        )
    return names


def _quotes_are_text(file: Path) -> bool:
    """Whether a tsv file uses quotes as plain characters, as those of GLUE do.

    So it is when its lines, split at tabs, are all as wide as its header, while quotes would not match, or
    would join fields or lines.
    """
    with _opened(file) as lines:
        widths = {line.count("\t") for line in lines if line.strip("\r\n")}
    if len(widths) != 1:
        return False
    with _opened(file) as lines:
        reader, ended = csv.reader(lines, delimiter="\t", strict=True), 0
        try:
            for cells in reader:
                if reader.line_num > ended + 1 or any("\t" in cell for cell in cells):
                    return True
                ended = reader.line_num
        except csv.Error:
            return True
    return False


def ending_of(file: Path) -> str:
    """What the name ends in, `.gz` apart: csv, parquet …"""
    return file.name.removesuffix(".gz").rpartition(".")[2]


def _opened(file: Path) -> TextIO:
    opened: Any = gzip.open if file.suffix == ".gz" else open
    return opened(file, "rt", encoding="utf-8-sig", newline="")


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _kind(parts: Sequence[pa.ChunkedArray]) -> str | None:
    values = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).drop_null()

    def every(pattern: str) -> bool:
        return len(values) > 0 and pc.all(pc.match_substring_regex(values, pattern)).as_py()

    if every(INTEGER):
        return "int64" if _fits(values) else None
    if every(BOOLEAN):
        return "bool"
    return "float64" if every(NUMBER) and not every(DIGITS) else None


def _fits(values: pa.ChunkedArray) -> bool:
    try:
        pc.cast(values, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True
