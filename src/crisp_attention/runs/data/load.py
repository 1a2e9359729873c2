"""Any data set of labelled texts or images, ready for fine-tuning, from the hub, memory, a folder or a file."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.table import InMemoryTable
from PIL import Image as PILImage
from PIL import Image as Pillow
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from crisp_attention.errors import DataError, first_line, listed
from crisp_attention.runs.data.classes import of_classes, with_classes
from crisp_attention.runs.data.columns import check_columns, check_inputs, choose_columns
from crisp_attention.runs.data.files import FORMATS, is_delimited, read_files, typed
from crisp_attention.runs.data.labels import learn_labels
from crisp_attention.runs.data.splits import hold_out, take_examples
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task import Task

EVERY_CLASS = "train of every class"
SPLITS = ("train", "validation", "test", EVERY_CLASS)
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
FILE_NAME = re.compile(
    rf"(?P<split>{'|'.join(SPLIT_NAMES)})"
    r"(?:-(?P<part>\d+)-of-(?P<parts>\d+)(?:-[0-9a-f]+)?)?"
    rf"\.(?P<format>{'|'.join(map(re.escape, FORMATS))})"
)
DESCRIPTION = "dataset_infos.json"  # of a data set of the Hub
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in the folder
Splits = dict[str, Dataset]


def read_file(file: Path) -> tuple[Splits, list[str]]:
    """The file as the train split, whatever its name is. Raises DataError when it cannot be read."""
    if not _is_data(file):
        raise DataError(
            f"expected a file that ends in {listed(f'.{ending}' for ending in FORMATS)}, or a folder; found {file}"
        )
    return _from_files({"train": [file]}), []


def read_folder(folder: Path) -> tuple[Splits, list[str]]:
    """The splits that the folder holds, and notes on what was left out.

    They are those of `save_to_disk`, or else of its files named after splits, or else of its folders of
    images, one subfolder a class, or else its own subfolders are the classes of the train split. Raises
    DataError when the folder holds no split, two sources for one split, only some parts of a split, or
    unreadable files.
    """
    entries = sorted(folder.iterdir())
    if any((folder / name).is_file() for name in SAVED):
        return _read_saved(folder), []
    files = _split_files([entry for entry in entries if entry.is_file()])
    if files:
        used = {file for paths in files.values() for file in paths}
        left = [
            each.name for each in entries if each not in used and _is_data(each) and each.name != DESCRIPTION
        ]
        return _from_files(files), [f"files not used: {listed(left)}"] if left else []
    folders = _shown_folders(folder)
    images = {split: _shown_folders(path) for split, path in _image_folders(folders).items()}
    if not images and any(has_images(each) for each in folders):
        images = {"train": folders}
    if images:
        read = {split: read_class_folders(split, classes) for split, classes in images.items()}
        return {split: rows for split, (rows, _) in read.items()}, [
            note for _, notes in read.values() for note in notes
        ]
    raise DataError(
        f"{folder} holds no data set: expected files named train, validation and test (.parquet, .csv, "
        f".tsv, .jsonl or .json; train-00000-of-00002.parquet for parts), folders train/CLASS or CLASS of "
        f"images, or what save_to_disk of datasets wrote; "
        f"found {listed(entry.name + '/' * entry.is_dir() for entry in entries)}"
    )


def _is_data(file: Path) -> bool:
    return file.name.endswith(tuple(f".{ending}" for ending in FORMATS))


def _from_files(files: dict[str, list[Path]]) -> Splits:
    splits = {split: read_files(split, paths) for split, paths in files.items()}
    return typed(splits, [split for split, paths in files.items() if is_delimited(paths[0])])


def _read_saved(folder: Path) -> Splits:
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # the library passes on any error of its readers
        raise DataError(f"cannot read the data set saved in {folder}: {first_line(error)}") from error
    found = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {str(split): plain_rows(rows) for split, rows in found.items()}


def plain_rows(rows: Dataset) -> Dataset:
    """The same rows without a format of their own, and without files next to which `map` would write."""
    if rows._indices is not None:
        rows = rows.flatten_indices(keep_in_memory=True)
    return Dataset(InMemoryTable(rows.data.table), info=rows.info)


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


def _shown_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_folders(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name)
        if split is None or not _shown_folders(folder):
            continue
        if split in found:
            raise DataError(f"expected one folder for the {split} split; found {found[split]} and {folder}")
        found[split] = folder
    return found


def has_images(folder: Path) -> bool:
    """Whether a file right inside the folder is an image by its name."""
    return any(_is_image(file) for file in folder.iterdir())


def read_class_folders(split: str, folders: Sequence[Path]) -> tuple[Dataset, list[str]]:
    """The paths of the images and their classes, the names of the folders; and notes on what is left out.

    The images are read when they are used. Raises DataError when there are none.
    """
    found = {
        folder: sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        for folder in sorted(folders)
    }
    images = {folder: [file for file in files if _is_image(file)] for folder, files in found.items()}
    others = [file for files in found.values() for file in files if not _is_image(file)]
    classes = [folder for folder, files in images.items() if files]
    if not classes:
        raise DataError(
            f"the {split} split is empty: expected images in {folders[0].parent}/CLASS; found none"
        )
    names = [folder.name for folder in classes]
    rows = [(str(file.absolute()), number) for number, each in enumerate(classes) for file in images[each]]
    paths, labels = zip(*rows, strict=True)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    outside = sorted(file for file in folders[0].parent.iterdir() if _is_image(file))
    inner = [each for each in others if each.is_dir()]
    files = [each for each in others if not each.is_dir()]
    notes = [
        f"{what}, left out of the {split} split: {len(left):,}, such as {left[0]}"
        for what, left in (
            ("not images by their names", files),
            ("images outside the class folders", outside),
            ("folders inside the class folders", inner),
        )
        if left
    ]
    if empty := [folder.name for folder in found if folder not in classes]:
        notes.append(f"class folders of the {split} split without images: {listed(empty)}")
    return Dataset.from_dict({"image": list(paths), "label": list(labels)}, features), notes


def _is_image(file: Path) -> bool:
    known = Pillow.registered_extensions().get(file.suffix.lower())
    return known in Pillow.OPEN and not file.name.startswith(".") and file.is_file()


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


def load_task(data: Data, seed: int = 0) -> Task:
    """Load "builtin:digits", a local folder or file, a data set of the Hub, or what is in memory.

    A data set of the Hub is `name` or `name:configuration`, at `revision` or its newest. Columns that are
    not named are found by their types, names and contents. Labels that are floats are numbers to predict, all
    others are classes. A test split without labels is left out; without a labelled validation split one is held
    out of train, the same one every time. `train_examples` keeps a fixed random subset of train. With classes
    of a user, train has those alone, and another split (`EVERY_CLASS`) the whole of it; `seed` draws them where
    they are to be drawn. Raises DataError for what cannot be used.
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
    target = known.target
    if data.has_classes:
        splits[EVERY_CLASS] = splits["train"]
        target = with_classes(
            target,
            {name: rows for name, rows in splits.items() if name != EVERY_CLASS},
            data.classes,
            data.draw_classes,
            seed,
        )
        splits["train"] = of_classes(splits["train"], target.classes)
        names = listed(target.label_names[each] for each in target.classes)
        notes.append(
            f"classes: {names} of {len(target.label_names)}, {len(splits['train']):,} training examples"
        )
    if data.train_examples is not None:
        kept = take_examples(splits["train"], data.train_examples, known.are_classes)
        notes.append(f"training on {len(kept):,} of {len(splits['train']):,} examples")
        splits["train"] = kept
    splits = {split: splits[split] for split in SPLITS if split in splits}
    return Task(splits, columns.texts, columns.image, target, tuple(notes))
