"""Reading the splits of a data set from a local folder."""

import glob
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from crisp_attention.training.data.error import DataError, first_line, listed

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
BUILDERS = {"parquet": "parquet", "csv": "csv", "jsonl": "json", "json": "json"}
# The defaults read the text "NA" in csv as missing, type each 10,000 rows of csv anew,
# and fail on empty parquet.
OPTIONS: dict[str, dict[str, Any]] = {
    "parquet": {"batch_size": 10_000},
    "csv": {"keep_default_na": False, "na_values": [""], "chunksize": 10_000_000},
    "json": {},
    "imagefolder": {"drop_labels": False},
}
FILE_NAME = re.compile(
    rf"(?P<split>{'|'.join(SPLIT_NAMES)})"
    r"(?:-(?P<part>\d+)-of-(?P<parts>\d+)(?:-[0-9a-f]+)?)?"
    rf"\.(?P<format>{'|'.join(BUILDERS)})"
)


def read_folder(folder: Path) -> dict[str, Dataset]:
    """The splits that the folder's files hold, or else its folders of images, one subfolder a class.

    Raises DataError when the folder holds no split, two sources for one split, some parts of a split
    only, or a file that cannot be read.
    """
    entries = sorted(folder.iterdir())
    files = _split_files([entry for entry in entries if entry.is_file()])
    if files:
        return {split: _read_files(split, paths) for split, paths in files.items()}
    folders = _image_folders([entry for entry in entries if entry.is_dir()])
    if folders:
        return {
            split: _load("imagefolder", split, [f"{glob.escape(str(path))}/*/*"], str(path))
            for split, path in folders.items()
        }
    raise DataError(
        f"{folder} holds no data set: expected files named train, validation and test (.parquet, .csv, "
        f".jsonl or .json; train-00000-of-00002.parquet for parts) or folders train/CLASS of images; "
        f"found {listed(entry.name + '/' * entry.is_dir() for entry in entries)}"
    )


def _split_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    named = defaultdict(list)
    for file in files:
        match = FILE_NAME.fullmatch(file.name)
        if match:
            named[SPLIT_NAMES[match["split"]]].append((file, match))
    for split, found in named.items():
        sources = {(match["split"], match["format"], match["parts"]) for _, match in found}
        if len(sources) > 1:
            raise DataError(
                f"expected one file for the {split} split, or its numbered parts; "
                f"found {listed(file.name for file, _ in found)} in {found[0][0].parent}"
            )
        parts = found[0][1]["parts"]
        numbers = {match["part"] for _, match in found}
        if parts and not int(parts) == len(numbers) == len(found):
            raise DataError(
                f"expected {int(parts)} parts of the {split} split in {found[0][0].parent}; "
                f"found {len(found)}: {listed(file.name for file, _ in found)}"
            )
    return {split: [file for file, _ in found] for split, found in named.items()}


def _image_folders(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name)
        if split is None or not any(child.is_dir() for child in folder.iterdir()):
            continue
        if split in found:
            raise DataError(f"expected one folder for the {split} split; found {found[split]} and {folder}")
        found[split] = folder
    return found


def _read_files(split: str, files: Sequence[Path]) -> Dataset:
    for file in files:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty (0 bytes): expected the rows of the {split} split")
    builder = BUILDERS[files[0].suffix[1:]]
    try:
        return _load(builder, split, [glob.escape(str(file)) for file in files], listed(files))
    except DataError:
        if len(files) > 1:  # find the one to blame
            for file in files:
                _read_files(split, [file])
        raise


def _load(builder: str, split: str, patterns: list[str], source: str) -> Dataset:
    try:
        return load_dataset(builder, data_files={split: patterns}, split=split, **OPTIONS[builder])
    except Exception as error:  # load_dataset lets through whatever its readers raise
        if "corresponds to no data" in str(error):
            raise DataError(f"the {split} split is empty: expected rows in {source}; found none") from error
        raise DataError(f"cannot read the {split} split from {source}: {first_line(error)}") from error
