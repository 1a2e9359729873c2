"""Where a data set comes from: built in, a local folder or the Hugging Face Hub."""

from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from crisp_attention.training.data.digits import read_digits
from crisp_attention.training.data.error import DataError, first_line, listed
from crisp_attention.training.data.folder import SPLIT_NAMES, read_folder


def read_splits(dataset: str) -> tuple[dict[str, Dataset], list[str]]:
    """The data set's splits, named train, validation and test, as they are, and the notes on them.

    Raises DataError when the data set does not exist, cannot be read or has no train split, or when a
    split has no rows.
    """
    found = _read(dataset)
    splits: dict[str, Dataset] = {}
    for name, rows in found.items():
        split = SPLIT_NAMES.get(name)
        if split in splits:
            raise DataError(f"{dataset}: expected one {split} split; found the splits {listed(found)}")
        if split:
            splits[split] = rows
    if "train" not in splits:
        raise DataError(f"{dataset}: expected a train split; found the splits {listed(found)}")
    for split, rows in splits.items():
        if not len(rows):
            raise DataError(f"{dataset}: the {split} split is empty: expected rows; found none")
    unused = [name for name in found if name not in SPLIT_NAMES]
    return splits, [f"splits not used: {listed(unused)}"] if unused else []


def _read(dataset: str) -> dict[str, Dataset]:
    if dataset.startswith("builtin:"):
        if dataset != "builtin:digits":
            raise DataError(f"expected the built-in data set builtin:digits; found {dataset}")
        return read_digits()
    path = Path(dataset).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.exists():
        raise DataError(f"expected a folder of train, validation and test files; {dataset} is a file")
    if dataset.startswith((".", "/", "~")):
        raise DataError(f"expected a folder; {dataset} does not exist")
    # load_dataset would read every file of the working folder for a name such as "csv".
    if dataset in _PACKAGED_DATASETS_MODULES:
        raise DataError(f"expected a folder or a data set's id on the Hub; found the file format {dataset}")
    try:
        return dict(load_dataset(dataset))
    except Exception as error:  # load_dataset lets through whatever the Hub and its readers raise
        raise DataError(
            f"{dataset} is no local folder and cannot be loaded from the Hub: {first_line(error)}"
        ) from error
