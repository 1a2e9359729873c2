"""Any classification data set, ready for fine-tuning."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from crisp_attention.errors import listed
from crisp_attention.runs.data.columns import check_columns, check_inputs, choose_columns
from crisp_attention.runs.data.labels import complete, label_values, learn_labels, spaced
from crisp_attention.runs.data.source import read_splits
from crisp_attention.runs.data.splits import hold_out, take_examples
from crisp_attention.runs.spec import Data


@dataclass(frozen=True)
class Task:
    """A classification data set: its inputs and classes.

    splits: "train", "validation" and, when labelled, "test", each with the input columns, "labels"
        (0..n-1) and "index", the row number in the split as it was read.
    text_columns: one or two, none for images.
    image_column: the images' column, None for text.
    label_names: the name of class i.
    notes: sentences for the user: the columns found and what was done to the labels and splits.
    """

    splits: dict[str, Dataset]
    text_columns: tuple[str, ...]
    image_column: str | None
    label_names: tuple[str, ...]
    notes: tuple[str, ...]


def load_task(data: Data) -> Task:
    """Load "builtin:digits", a local folder or file, a data set of the Hub, or what is in memory.

    A data set of the Hub is `name` or `name:configuration`, at `revision` or its newest. Columns that are
    not named are found by their types, names and contents. A test split without labels is left out; without
    a labelled validation split one is held out of train, the same one every time. `train_examples` keeps a
    fixed random subset of train. Raises DataError for what cannot be used.
    """
    found, notes = read_splits(data.source, data.revision)
    train = found["train"]
    columns = choose_columns(train, data.text_columns, data.image_column, data.label_column)
    notes.extend(columns.notes)
    train_labels = complete("train", label_values("train", train, columns.label))
    label_map = learn_labels(train, columns.label, train_labels)
    notes.extend(label_map.notes)
    labelled_splits = [rows for rows in found.values() if columns.label in rows.features]
    if cut := sorted({label for rows in labelled_splits for label in spaced(rows, columns.label)}):
        notes.append(f"labels taken without the spaces around them: {listed(map(repr, cut))}")

    splits: dict[str, Dataset] = {}
    for split, rows in found.items():
        labelled = columns.label in rows.features
        labels = label_values(split, rows, columns.label) if labelled else []
        if label_map.unlabelled(labels):
            notes.append(f"the {split} split has no labels and is left out")
            continue
        check_columns(split, rows, train, columns.inputs)
        for column in columns.inputs:
            check_inputs(split, rows, column)
        kept = rows.select_columns(list(columns.inputs))
        kept = kept.add_column("labels", label_map.encode(split, labels))
        splits[split] = kept.add_column("index", np.arange(len(rows)))
    if "validation" not in splits:
        splits["train"], splits["validation"], note = hold_out(splits["train"])
        notes.append(note)
    if data.train_examples is not None:
        kept = take_examples(splits["train"], data.train_examples)
        notes.append(f"training on {len(kept):,} of {len(splits['train']):,} examples")
        splits["train"] = kept
    splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    return Task(splits, columns.texts, columns.image, label_map.names, tuple(notes))
