"""Any data set of labelled texts or images, ready for fine-tuning."""

import numpy as np
from datasets import Dataset

from crisp_attention.runs.data.columns import check_columns, check_inputs, choose_columns
from crisp_attention.runs.data.labels import learn_labels
from crisp_attention.runs.data.source import read_splits
from crisp_attention.runs.data.splits import hold_out, take_examples
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task import Task


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
