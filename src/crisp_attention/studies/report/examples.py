"""The examples behind their numbers: texts or small pictures, and the names of the classes."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from datasets import Dataset

from crisp_attention.errors import DataError
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.images import WHITE, as_rgb, survey
from crisp_attention.runs.task import Task
from crisp_attention.studies.folder import StudyFolder

MOST_LETTERS = 300
MOST_PIXELS = 64


class Example(NamedTuple):
    """What the page shows of an example: its text, or its picture as a data URI, and its class."""

    text: str
    picture: str
    label: str


def read_examples(
    study: StudyFolder, split: str, indices: Sequence[int], labels: Sequence[int]
) -> list[Example]:
    """The examples with these indices, from the data set on which the study was made.

    Raises DataError if the data set, or one of the images, cannot be read, or the labels there are others.
    """
    task = load_task(replace(study.plan.data, train_examples=None))
    if split not in task.splits:
        raise DataError(f"expected a labelled {split} split; found {', '.join(task.splits)}")
    rows = task.splits[split]
    places = {index: place for place, index in enumerate(rows["index"])}
    white = WHITE
    if task.image_column is not None:
        wanted = rows.select([places[index] for index in indices if index in places])
        white = survey({split: wanted}, task.image_column).white
    return [
        _example(task, rows, places.get(index), index, label, white)
        for index, label in zip(indices, labels, strict=True)
    ]


def _example(task: Task, rows: Dataset, place: int | None, index: int, label: int, white: int) -> Example:
    if place is None:
        raise DataError(f"expected an example {index}; the split has {len(rows):,} now")
    row = rows[place]
    if row["labels"] != label:
        raise DataError(f"expected label {label} for example {index}; found {row['labels']}: other data")
    name = task.label_names[label]
    if task.image_column is not None:
        return Example("", _data_uri(row[task.image_column], white), name)
    text = " ⏎ ".join(str(row[column]) for column in task.text_columns)
    cut = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    return Example(cut, "", name)


def _data_uri(image: Any, white: int) -> str:
    small = image.convert("L") if image.mode in ("1", "L") else as_rgb(image, white)
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    raw = io.BytesIO()
    small.save(raw, format="PNG")
    return "data:image/png;base64," + b64encode(raw.getvalue()).decode()
