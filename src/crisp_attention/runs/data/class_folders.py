"""Images in one folder for each class."""

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from crisp_attention.errors import DataError, listed


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
