"""Images: folders of classes, every mode of Pillow, and files that cannot be read."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from crisp_attention.errors import DataError
from crisp_attention.runs.data.images import as_rgb, survey
from tests.runs.tables import noted, refuses, task_of

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def folders(path, *classes, count=2):
    """Grey images of one shade, `count` of each class."""
    for shade, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(count):
            Pillow.new("L", (4, 4), 10 * shade + number).save(path / name / f"{number}.png")


def stored(*images: Pillow.Image, kind: str = "TIFF", **options) -> dict[str, Dataset]:
    """A training split of the images as files of this kind."""
    packed = []
    for image in images:
        file = io.BytesIO()
        image.save(file, kind, **options)
        packed.append({"path": None, "bytes": file.getvalue()})
    return {"train": Dataset.from_dict({"image": packed}, Features({"image": Image()}))}


# --- folders


def test_folders_of_images(tmp_path):
    folders(tmp_path / "train", "cat", "dog", "emu", count=1)
    folders(tmp_path / "val", "dog", "emu", count=1)
    task = task_of(str(tmp_path))
    assert task.label_names == ("cat", "dog", "emu")
    assert task.splits["validation"]["labels"][:] == [1, 2]
    assert task.splits["train"][2]["image"].getpixel((0, 0)) == 20


def test_classes_without_splits_are_the_training_split(tmp_path):
    folders(tmp_path, "cat", "dog", "test", count=10)
    task = task_of(str(tmp_path))
    assert task.label_names == ("cat", "dog", "test")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 27, "validation": 3}
    assert noted(task, "held out 3 of 30 training examples (stratified by class)")


def test_what_is_left_out_of_folders_of_images_is_said(tmp_path):
    folders(tmp_path / "train", "cat", "dog", count=10)
    (tmp_path / "train" / "cat" / "labels.txt").touch()
    (tmp_path / "train" / "cat" / ".DS_Store").touch()
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    task = task_of(str(tmp_path))
    assert task.label_names == ("cat", "dog")
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 20
    assert noted(task, "not images by their names, left out of the train split: 1, such as ")
    assert "class folders of the train split without images: eel" in task.notes


@pytest.mark.parametrize("split", ["", "train"])
def test_images_in_other_depths_are_left_out_and_said(tmp_path, split):
    path = tmp_path / split
    folders(path, "cat", "dog", "emu/wild", count=10)
    folders(path, "cat/black", count=1)
    Pillow.new("L", (4, 4)).save(path / "loose.png")
    task = task_of(str(tmp_path))
    assert task.label_names == ("cat", "dog")
    assert noted(task, "images outside the class folders, left out of the train split: 1, such as ")
    assert noted(task, "folders inside the class folders, left out of the train split: 2, such as ")
    assert "class folders of the train split without images: emu" in task.notes


def test_folders_without_any_image(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    refuses(f"the train split is empty: expected images in {tmp_path / 'train'}/CLASS; found none", tmp_path)


def test_images_that_changed_in_place_are_read_again(tmp_path):
    folders(tmp_path, "cat", "dog", count=10)
    file = tmp_path / "cat" / "0.png"
    for shade in (0, 77):
        Pillow.new("L", (4, 4), shade).save(file)
        os.utime(file, (10**9, 10**9))
        task = task_of(str(tmp_path))
        rows = [*task.splits["train"], *task.splits["validation"]]
        assert next(row for row in rows if row["index"] == 0)["image"].getpixel((0, 0)) == shade
    file.unlink()
    task = task_of(str(tmp_path))
    assert sum(len(split) for split in task.splits.values()) == 19


# --- modes


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_values_beyond_8_bits_keep_as_many_levels_as_8_bits_hold(kind, bits):
    values = np.linspace(0, 2**bits - 1, 256).round().reshape(16, 16)
    image = Pillow.fromarray(values.astype(kind))
    assert image.mode in ("I;16", "I;16B", "I")
    seen = survey(stored(image), "image")
    assert seen.white == 2**bits - 1
    assert seen.notes == (f"16-bit images: grey values from 0 to {seen.white:,} are scaled to 0 to 255",)
    rgb = np.asarray(as_rgb(image, seen.white))
    assert (rgb == RAMP[..., None]).all()


def test_white_is_one_value_for_all_splits():
    bright, dark = (Pillow.fromarray(np.full((2, 2), value, np.uint16)) for value in (60_000, 600))
    splits = {"train": stored(dark)["train"], "test": stored(bright)["train"]}
    assert survey(splits, "image").white == 65_535
    assert np.asarray(as_rgb(dark)).max() == round(600 / 257)


COLOUR = Pillow.merge(
    "RGB", [Pillow.fromarray(RAMP), Pillow.fromarray(RAMP.T), Pillow.new("L", (16, 16), 90)]
)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes_without_transparency_are_as_pillow_converts_them(mode):
    image = COLOUR.convert(mode)
    assert np.array_equal(as_rgb(image), image.convert("RGB"))
    assert survey(stored(COLOUR), "image").notes == ()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "RGBa", "La"])
def test_transparent_parts_are_laid_on_white(mode):
    base = "LA" if mode in ("LA", "La") else "RGBA"
    image = COLOUR.convert(base)
    image.putalpha(Pillow.fromarray(RAMP))
    given = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    if mode == "PA":
        given.putalpha(Pillow.fromarray(RAMP))
    colour = np.asarray(given.convert(base).convert("RGB") if mode != "PA" else given.convert("RGB")).astype(
        float
    )
    share = RAMP[..., None] / 255
    expected = share * colour + (1 - share) * 255
    rgb = np.asarray(as_rgb(given)).astype(float)
    assert np.abs(rgb - expected)[RAMP > 40].max() < 2  # premultiplied colours are coarse where little shows
    assert (rgb[0, 0] == 255).all()


def test_a_transparent_colour_of_a_palette_is_white():
    image = COLOUR.quantize(4)
    clear = stored(image, kind="PNG", transparency=0)
    assert survey(clear, "image").notes == ("images with transparent parts, placed on white: 1",)
    rgb, colours = np.asarray(as_rgb(clear["train"][0]["image"])), np.asarray(image.convert("RGB"))
    hidden = np.asarray(image) == 0
    assert (rgb[hidden] == 255).all()
    assert np.array_equal(rgb[~hidden], colours[~hidden])


def test_of_a_moving_image_the_first_frame_is_read():
    first, second = (Pillow.new("L", (4, 4), shade) for shade in (10, 200))
    moving = stored(first, kind="GIF", save_all=True, append_images=[second])
    assert survey(moving, "image").notes == (
        "images with several frames, of which only the first is read: 1",
    )
    assert np.asarray(as_rgb(moving["train"][0]["image"])).max() == 10


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (Pillow.fromarray(np.full((2, 2), 0.5, np.float32)), "found the mode F"),
        (Pillow.new("LAB", (2, 2)), "found the mode LAB"),
        (Pillow.fromarray(np.array([[0, 70_000]], np.int32)), "found integers from 0 to 70,000"),
        (Pillow.fromarray(np.array([[-1, 3]], np.int32)), "found integers from -1 to 3"),
    ],
)
def test_modes_that_have_no_8_bit_form_are_refused_by_name(image, found):
    with pytest.raises(DataError, match=f"cannot read 1 of 1 images of the train split: row 0 .*{found}"):
        survey(stored(image), "image")
    with pytest.raises(ValueError, match=found):
        as_rgb(image)


def test_the_orientation_that_a_camera_noted_is_followed():
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = stored(COLOUR.resize((16, 8)), kind="JPEG", exif=exif)["train"][0]["image"]
    assert image.size == (8, 16)


# --- files that cannot be read


def noise(file: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.tiff"])
@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_truncated_files_are_named(tmp_path, name, keep):
    file = noise(tmp_path / name)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    rows = Dataset.from_dict({"image": [str(file)]}, Features({"image": Image()}))
    with pytest.raises(DataError, match=f"cannot read 1 of 1 images of the train split: {file} \\(.+\\)"):
        survey({"train": rows}, "image")


def test_every_unreadable_image_of_a_split_is_named(tmp_path):
    good = noise(tmp_path / "good.png")
    text, gone = tmp_path / "text.png", tmp_path / "gone.png"
    text.write_text("no image at all")
    wrong = tmp_path / "jpeg.png"  # the content counts, not the name
    Pillow.new("RGB", (4, 4)).save(wrong, "JPEG")
    paths = [str(file) for file in (good, text, wrong, gone)]
    rows = Dataset.from_dict({"image": paths}, Features({"image": Image()}))
    with pytest.raises(DataError) as raised:
        survey({"train": rows.select([0, 2]), "test": rows}, "image")
    assert str(raised.value).startswith(
        f"cannot read 2 of 4 images of the test split: {text} (no image), {gone} ("
    )


def test_an_unreadable_image_without_a_path_is_named_by_its_row():
    packed = {"image": [{"path": None, "bytes": b"no image"}], "index": [17]}
    rows = Dataset.from_dict(packed, Features({"image": Image(), "index": Value("int64")}))
    with pytest.raises(DataError, match=r"row 17 \(no image\)"):
        survey({"train": rows}, "image")
