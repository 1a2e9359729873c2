"""Data sets of a few rows, written as files."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, Features

from crisp_attention.errors import DataError
from crisp_attention.runs.data import load_task
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task import Task

PAIR = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
ROWS = PAIR * 10


def write(folder: Path, **splits: list[dict]) -> str:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def write_features(folder: Path, features: dict, **splits: dict) -> str:
    for split, columns in splits.items():
        Dataset.from_dict(columns, Features(features)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def task_of(source: str | Path, **columns) -> Task:
    return load_task(Data(source=source, **columns))


def refuses(message: str, dataset: str | Path, **options) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        task_of(dataset, **options)


def noted(task: Task, words: str) -> bool:
    return any(words in note for note in task.notes)
