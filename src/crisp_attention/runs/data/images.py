"""Any image that Pillow reads, as the 8-bit RGB that image processors take; and checking all images before training."""

import os
import struct
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Dataset, Image
from PIL import Image as Pillow
from rich.console import Console
from rich.progress import track

from crisp_attention.errors import DataError, listed
from crisp_attention.runs.terminal import is_main

SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
EIGHT_BITS = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
WHITE = 2**16 - 1
BATCH = 256
# What Pillow's readers raise for invalid files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    OverflowError,
    struct.error,
    Pillow.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageSurvey:
    """The properties of a data set's images.

    white: the grey value of white in 16-bit images: the largest that as many bits hold as the values there need.
    notes: sentences on what `as_rgb` does to them.
    """

    white: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    failure: str = ""
    brightest: int = -1  # of a 16-bit image
    transparent: bool = False
    frames: int = 1


def survey(splits: Mapping[str, Dataset], column: str) -> ImageSurvey:
    """Decode every image once, on all cores.

    Raises DataError that names the images that cannot be read, or are in a mode that has no 8-bit RGB.
    """
    console = Console(stderr=True)
    brightest, seen = -1, Counter[str]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, rows in splits.items():
            raw = rows.select_columns([column]).cast_column(column, Image(decode=False))
            failures: list[str] = []
            shown = track(
                range(0, len(raw), BATCH),
                f"reading the {split} images",
                console=console,
                transient=True,
                disable=not (console.is_terminal and is_main()),
            )
            for start in shown:
                values = raw[start : start + BATCH][column]
                for row, (value, found) in enumerate(
                    zip(values, pool.map(_look, values), strict=True), start
                ):
                    if found.failure:
                        failures.append(f"{value['path'] or f'row {_index(rows, row)}'} ({found.failure})")
                    brightest = max(brightest, found.brightest)
                    seen["transparent"] += found.transparent
                    seen["moving"] += found.frames > 1
            if failures:
                raise DataError(
                    f"cannot read {len(failures):,} of {len(rows):,} images of the {split} split: {listed(failures)}"
                )
    white = 2 ** max(8, brightest.bit_length()) - 1 if brightest >= 0 else WHITE
    notes = []
    if brightest >= 0:
        notes.append(f"16-bit images: grey values from 0 to {white:,} are scaled to 0 to 255")
    if seen["transparent"]:
        notes.append(f"images with transparent parts, placed on white: {seen['transparent']:,}")
    if seen["moving"]:
        notes.append(f"images with several frames, of which only the first is read: {seen['moving']:,}")
    return ImageSurvey(white, tuple(notes))


def as_rgb(image: Pillow.Image, white: int = WHITE) -> Pillow.Image:
    """The image in 8-bit RGB: 16-bit grey values scaled so that `white` is 255, transparent parts on white.

    Raises ValueError for modes that have no such form: floats, integers beyond 16 bits, Lab.
    """
    if problem := _problem(image):
        raise ValueError(problem)
    if image.mode in SIXTEEN_BITS:
        scaled = np.rint(np.asarray(image).astype(np.float64) * (255 / white))
        return Pillow.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if not _has_alpha(image):
        return image.convert("RGB")
    coloured = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), coloured).convert("RGB")


def _look(value: Mapping[str, Any]) -> _Found:
    source = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
    try:
        with Pillow.open(source) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            image.draft(None, (1, 1))  # jpeg: all bytes are read, an eighth of the pixels is computed
            image.load()
            if problem := _problem(image):
                return _Found(problem)
            if mode in SIXTEEN_BITS:
                return _Found(brightest=_extremes(image)[1], frames=frames)
            transparent = _has_alpha(image) and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
            return _Found(transparent=bool(transparent), frames=frames)
    except Pillow.UnidentifiedImageError:
        return _Found("no image")
    except UNREADABLE as error:
        return _Found(str(error) or type(error).__name__)


def _problem(image: Pillow.Image) -> str:
    if image.mode in EIGHT_BITS | WITH_ALPHA:
        return ""
    expected = "expected 8 or 16 bits a channel, in grey, RGB, CMYK, YCbCr or HSV"
    if image.mode not in SIXTEEN_BITS:
        return f"{expected}; found the mode {image.mode}"
    low, high = _extremes(image)
    return "" if 0 <= low <= high <= WHITE else f"{expected}; found integers from {low:,} to {high:,}"


def _extremes(image: Pillow.Image) -> tuple[int, int]:
    values = np.asarray(image)
    return int(values.min()), int(values.max())


def _has_alpha(image: Pillow.Image) -> bool:
    return image.mode in WITH_ALPHA or "transparency" in image.info


def _index(rows: Dataset, row: int) -> int:
    return rows["index"][row] if "index" in rows.features else row
