"""Any data set of labelled texts or images, ready for fine-tuning, from any source."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from crisp_attention.errors import DataError, first_line, listed
from crisp_attention.runs.data.columns import check_columns, check_inputs, choose_columns
from crisp_attention.runs.data.folder import SPLIT_NAMES, plain_rows, read_file, read_folder
from crisp_attention.runs.data.labels import learn_labels
from crisp_attention.runs.data.splits import hold_out, take_examples
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task import Task

TRAIN_ROWS = 300


def read_splits(dataset: str | DatasetDict, revision: str | None) -> tuple[dict[str, Dataset], list[str]]:
    """The data set's splits, named train, validation and test, as they are, and the notes on them.

    Raises DataError when the data set does not exist, cannot be read or has no train split, when a split
    has no rows, and for a revision of a data set that is not on the Hub.
    """
    if isinstance(dataset, DatasetDict):
        found = {str(name): plain_rows(rows) for name, rows in dataset.items()}
        notes: list[str] = []
        dataset = "the data set"
    else:
        found, notes = _read(dataset, revision)
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
    return splits, [*notes, *([f"splits not used: {listed(unused)}"] if unused else [])]


def _read(dataset: str, revision: str | None) -> tuple[dict[str, Dataset], list[str]]:
    path = Path(dataset).expanduser()
    local = path.exists() or dataset.startswith(("builtin:", ".", "/", "~"))
    if local and revision is not None:
        raise DataError(f"revision {revision} needs a data set of the Hub; {dataset} is not one")
    if dataset.startswith("builtin:"):
        if dataset != "builtin:digits":
            raise DataError(f"expected the built-in data set builtin:digits; found {dataset}")
        return read_digits(), []
    if path.is_dir():
        return read_folder(path)
    if path.exists():
        return read_file(path)
    if local:
        raise DataError(f"expected a folder or a file; {dataset} does not exist")
    return _from_hub(dataset, revision), []


def _from_hub(dataset: str, revision: str | None) -> dict[str, Dataset]:
    name, _, configuration = dataset.partition(":")
    # load_dataset would read every file of the working folder for a name such as "csv".
    if name in _PACKAGED_DATASETS_MODULES:
        raise DataError(f"expected a folder or a data set's id on the Hub; found the file format {name}")
    try:
        return dict(load_dataset(name, configuration or None, revision=revision))
    except Exception as error:  # load_dataset passes on any error of the Hub and of its readers
        reason = first_line(error)
        if "Config name is missing" in reason:
            reason = f"expected one of its configurations, as in {name}:CONFIGURATION; {_second_line(error)}"
        raise DataError(
            f"{dataset} is not a local folder or file and cannot be loaded from the Hub: {reason}"
        ) from error


def _second_line(error: BaseException) -> str:
    return " ".join(str(error).strip().splitlines()[1:2])


def read_digits() -> dict[str, Dataset]:
    """The 1,797 digits as 8x8 grayscale images: a fixed stratified 300 for training, 1,497 for testing."""
    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), train_size=TRAIN_ROWS, random_state=0, stratify=labels
    )
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return {
        split: Dataset.from_dict(
            {"image": [PILImage.fromarray(pixels[row]) for row in rows], "label": labels[rows]}, features
        )
        for split, rows in (("train", train), ("test", test))
    }


def load_task(data: Data) -> Task:
    """Load "builtin:digits", a local folder or file, a data set of the Hub, or what is in memory.

    A data set of the Hub is `name` or `name:configuration`, at `revision` or its newest. Columns that are
    not named are found by their types, names and contents. Labels that are floats are numbers to predict, all
    others are classes. A test split without labels is left out; without a labelled validation split one is held
    out of train, the same one every time. `train_examples` keeps a fixed random subset of train. Raises DataError
    for what cannot be used.
    """
    found, notes = read_splits(data.source, data.revision)
    train = found["train"]
    columns = choose_columns(train, data.text_columns, data.image_column, data.label_column)
    notes.extend(columns.notes)
    known = learn_labels(found, columns.label)
    notes.extend(known.notes)

    splits: dict[str, Dataset] = {}
    for split, rows in found.items():
        labels = known.encode(split, rows, columns.label) if columns.label in rows.features else None
        if labels is None:
            notes.append(f"the {split} split has no labels and is left out")
            continue
        check_columns(split, rows, train, columns.inputs)
        for column in columns.inputs:
            check_inputs(split, rows, column)
        kept = rows.select_columns(list(columns.inputs))
        kept = kept.add_column("labels", labels)
        splits[split] = kept.add_column("index", np.arange(len(rows)))
    if "validation" not in splits:
        splits["train"], splits["validation"], note = hold_out(splits["train"], known.are_classes)
        notes.append(note)
    if data.train_examples is not None:
        kept = take_examples(splits["train"], data.train_examples, known.are_classes)
        notes.append(f"training on {len(kept):,} of {len(splits['train']):,} examples")
        splits["train"] = kept
    splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    return Task(splits, columns.texts, columns.image, known.target, tuple(notes))
