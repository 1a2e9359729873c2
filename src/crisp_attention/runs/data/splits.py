"""Taking rows out of the training split, the same ones every time."""

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from crisp_attention.errors import DataError

HELD_OUT = 0.1


def hold_out(train: Dataset, classes: bool = True) -> tuple[Dataset, Dataset, str]:
    """Split train into training and validation rows (10 %, at least 1); and the note on it.

    Stratified by `classes`, where the labels are classes and the numbers of rows allow it; in any case train keeps
    every class.
    Raises DataError when no row can be spared.
    """
    labels = np.array(train["labels"][:])
    found, counts = np.unique(labels if classes else np.zeros(len(labels)), return_counts=True)
    count = max(1, round(HELD_OUT * len(labels)))
    if not classes:
        held = np.random.default_rng(0).permutation(len(labels))[: min(count, len(labels) - 1)]
        how = "at random"
    elif counts.min() >= 2 and len(found) <= count:
        held = train_test_split(np.arange(len(labels)), test_size=count, random_state=0, stratify=labels)[1]
        how = "stratified by class"
    else:
        order = np.random.default_rng(0).permutation(len(labels))
        held = np.setdiff1d(order, _one_of_each(labels, order), assume_unique=True)[:count]
        how = "not stratified, as a class has too few"
    if not len(held):
        raise DataError(
            f"expected a validation split, or a class with two training examples to hold one out; "
            f"found {len(labels)} training examples" + (f" of {len(found)} classes" if classes else "")
        )
    note = (
        f"no labelled validation split: held out {len(held):,} of {len(labels):,} training examples ({how})"
    )
    kept = np.setdiff1d(np.arange(len(labels)), held)
    return train.select(kept), train.select(np.sort(held)), note


def take_examples(train: Dataset, count: int, classes: bool = True) -> Dataset:
    """A random subset of train in which every class occurs, if the labels are classes, in the order of train.

    Raises DataError when there are fewer examples than `count`, or more classes.
    """
    labels = np.array(train["labels"][:])
    if count > len(labels):
        raise DataError(
            f"expected at most {len(labels):,} training examples, as many as there are; found {count:,}"
        )
    order = np.random.default_rng(0).permutation(len(labels))
    needed = _one_of_each(labels, order) if classes else order[:1]
    if count < len(needed):
        raise DataError(
            f"expected at least one training example for each of {len(needed)} classes; found {count}"
        )
    chosen = order[:count]
    if classes and len(np.unique(labels[chosen])) < len(needed):
        others = order[~np.isin(order, needed)]
        chosen = np.concatenate([needed, others[: count - len(needed)]])
    return train.select(np.sort(chosen))


def sample(split: Dataset, count: int) -> Dataset:
    """At most `count` random examples of a split, in its order: its first ones may be all of one class."""
    if count >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(0).permutation(len(split))[:count]))


def _one_of_each(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    return order[np.unique(labels[order], return_index=True)[1]]
