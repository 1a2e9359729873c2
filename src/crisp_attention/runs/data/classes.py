"""The classes that a user needs, of those that the data have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset

from crisp_attention.errors import DataError, listed
from crisp_attention.runs.task.target import Classification, Target


def with_classes(
    target: Target,
    splits: Mapping[str, Dataset],
    classes: Sequence[str | int],
    draw: int | None = None,
    seed: int = 0,
) -> Classification:
    """The target with some of its classes, by name or number, or as many as `draw` says, drawn by the seed.

    A number as such is always that of a class, as text only if no class is called so. Drawn are classes that every
    split has examples of. Raises DataError for numbers to predict, and for classes that do not exist, are named twice,
    lack examples in a split, or are all.
    """
    if not isinstance(target, Classification):
        raise DataError("classes were asked for; expected labels that are classes, found numbers")
    names = target.label_names
    lacking = {name: set(range(len(names))) - set(rows["labels"][:]) for name, rows in splits.items()}
    if draw is not None:
        known = sorted(set(range(len(names))).difference(*lacking.values()))
        if draw >= len(names) or draw > len(known):
            raise DataError(
                f"draw_classes expects fewer than the {len(names)} classes, and at most the {len(known)} that all of "
                f"{listed(splits)} have examples of; got {draw}"
            )
        drawn = np.random.default_rng(seed).permutation(known)[:draw]
        return replace(target, classes=tuple(sorted(map(int, drawn))))
    numbers = [_number(each, names) for each in classes]
    chosen = tuple(sorted(set(numbers)))
    if not chosen:
        raise DataError(f"no class is named: expected some of {listed(names)}")
    if twice := [names[each] for each in chosen if numbers.count(each) > 1]:
        raise DataError(
            f"classes names {listed(twice)} twice: expected each class once, got {listed(classes)}"
        )
    if len(chosen) == len(names):
        raise DataError(f"classes names all {len(names)} of them: expected fewer, or none for all")
    for name, without in lacking.items():
        if empty := [names[each] for each in chosen if each in without]:
            raise DataError(f"classes without an example in the {name} split: {listed(empty)}")
    return replace(target, classes=chosen)


def of_classes(train: Dataset, classes: tuple[int, ...]) -> Dataset:
    """The examples of these classes, in their order."""
    return train.select(np.flatnonzero(np.isin(np.array(train["labels"][:]), classes)))


def others(target: Classification, train: Dataset, seed: int) -> tuple[int, ...]:
    """As many classes as the user's, other ones that have examples, drawn by the seed.

    Raises DataError where there are fewer.
    """
    left = sorted(set(train["labels"][:]) - set(target.classes))
    if len(left) < len(target.classes):
        raise DataError(
            f"{len(target.classes)} random other classes were asked for; there are {len(left)} others: expected at "
            f"most half of the {len(target.label_names)} classes as the user's"
        )
    # not the generator that draws the user's classes, which would pair them
    drawn = np.random.default_rng((seed, 1)).permutation(left)[: len(target.classes)]
    return tuple(sorted(map(int, drawn)))


def _number(word: str | int, names: tuple[str, ...]) -> int:
    if isinstance(word, str) and word in names:
        return names.index(word)
    if str(word).isdecimal() and int(word) < len(names):
        return int(word)
    raise DataError(f"there is no class {word}: expected names or numbers of {listed(names)}")
