"""Reading the splits of a data set from a local folder or a single file."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from datasets.table import InMemoryTable
from PIL import Image as Pillow

from crisp_attention.errors import DataError, first_line, listed
from crisp_attention.runs.data.files import FORMATS, is_delimited, read_files, typed

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
