"""What `crisp.prune` is given: a classifier, its encoded examples, and a way to make batches of them; checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, TypeAlias

import numpy as np
from accelerate.utils import send_to_device
from datasets import ClassLabel, Dataset, Value
from torch import nn
from transformers import PreTrainedModel, default_data_collator

from crisp_attention.errors import DataError, OptionError, first_line, listed
from crisp_attention.models.transformers.checkpoints import UNUSABLE
from crisp_attention.runs.data.classes import of_classes, with_classes
from crisp_attention.runs.data.load import EVERY_CLASS
from crisp_attention.runs.sources import Source
from crisp_attention.runs.sources.source import tried
from crisp_attention.runs.task import Task
from crisp_attention.runs.task.target import Classification
from crisp_attention.runs.trainer import longest_first

Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]]
Collate: TypeAlias = Callable[[list[Any]], dict[str, Any]]
ENCODED = "expected rows that are encoded, as the model's tokenizer or processor returns them"
FEW = 4  # examples that are tried, the longest of a split


def check_classifier(model: nn.Module) -> None:
    """Raises OptionError for anything but a model of transformers that gives an example one of several classes."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        merged = " after merge_and_unload()" if hasattr(model, "merge_and_unload") else ""
        raise OptionError(f"model must be a classifier of transformers{merged}, got {name}", "model")
    if "labels" not in signature(model.forward).parameters:
        raise OptionError(
            f"model must be a classifier, with a head; {name} takes no labels: expected one such as "
            f"AutoModelForSequenceClassification or AutoModelForImageClassification makes",
            "model",
        )
    config: Any = model.config
    problem, outputs = config.problem_type, config.num_labels
    if problem not in (None, "single_label_classification") or outputs < 2:
        found = f"{outputs} output{'s' * (outputs != 1)}" + (f" and is for {problem}" if problem else "")
        raise OptionError(
            f"model must give every example one of at least 2 classes; {name} has {found}", "model"
        )


def task_of(
    model: PreTrainedModel, train: Rows, evaluation: Rows | None, classes: Sequence[str | int]
) -> Task:
    """The examples with the classes that are needed. Raises DataError for what are no encoded examples of classes."""
    config: Any = model.config
    names = tuple(str(config.id2label[each]) for each in range(config.num_labels))
    target = Classification(names)
    splits = {"train": _dataset("train", train, model)}
    if evaluation is not None:
        splits["validation"] = _dataset("evaluation", evaluation, model)
    if classes:
        target = with_classes(target, splits, classes)
        rows = splits["train"]
        splits |= {"train": of_classes(rows, target.classes), EVERY_CLASS: rows}
    return Task(splits, (), None, target, ())


def try_examples(source: Source, task: Task) -> None:
    """Classify the longest and the shortest examples of each split. Raises OptionError or DataError if that fails."""
    model: Any = source.model
    for split, rows in task.splits.items():
        name = "evaluation" if split == "validation" else split
        ordered = longest_first(rows)
        if source.collate is default_data_collator and "input_ids" in rows.features:
            most, least = (len(ordered[each]["input_ids"]) for each in (0, -1))
            if most != least:
                raise DataError(
                    f"{name} has rows of {least} to {most} tokens, and a batch needs rows of one length: expected "
                    f"collate=DataCollatorWithPadding(tokenizer)"
                )
        chosen = ordered.select(sorted({*range(min(FEW, len(rows))), len(rows) - 1}))
        try:
            batch = send_to_device(source.collate(list(chosen)), model.device)
            expected = (len(batch["labels"]), model.config.num_labels)
        except UNUSABLE as error:
            raise OptionError(
                f"collate must make a batch with labels of examples of {name}; it raised {first_line(error)}",
                "collate",
            ) from error
        with tried(model, f"the examples of {name}"):
            logits = model(**{key: each for key, each in batch.items() if key != "labels"}).logits
        if (found := tuple(logits.shape)) != expected:
            raise OptionError(
                f"model must give {expected} outputs (examples, classes); {type(model).__name__} gave {found}",
                "model",
            )


def _dataset(name: str, rows: Any, model: PreTrainedModel) -> Dataset:
    """The rows with the columns alone that the model takes."""
    if isinstance(rows, Mapping):
        raise DataError(
            f"{name} must be the examples of one split, one after another; found {type(rows).__name__} of "
            f"{listed(rows)}"
        )
    if isinstance(rows, str) or not isinstance(rows, Dataset | Iterable):
        raise DataError(f"{name} must be a Dataset or a sequence of examples, found {rows!r}")
    if not isinstance(rows, Dataset):
        rows = list(rows)
        if other := [type(each).__name__ for each in rows if not isinstance(each, Mapping)]:
            raise DataError(f"{name} must hold examples that are mappings of columns, found {other[0]}")
        rows = Dataset.from_list([dict(each) for each in rows])
    found = listed(rows.column_names) if rows.column_names else "nothing"
    if not len(rows) or "labels" not in rows.column_names:
        raise DataError(
            f"{name} must hold examples with their class as 'labels'; found {len(rows)} examples with {found}"
        )
    taken = signature(model.forward).parameters
    kept = [each for each in rows.column_names if each in taken and each != "labels"]
    if not kept or any("string" in _kind(rows, each) for each in kept):
        raise DataError(
            f"{name} must hold what {type(model).__name__} takes, such as {model.main_input_name}; found {found}"
            f"{', as text' if kept else ''}: {ENCODED}"
        )
    _check_labels(name, rows, model)
    return rows.select_columns([*kept, "labels"])


def _check_labels(name: str, rows: Dataset, model: PreTrainedModel) -> None:
    outputs: Any = model.config.num_labels
    kind, found = _kind(rows, "labels"), ""
    if None in rows["labels"]:
        kind = "missing ones"
    if kind.startswith(("int", "uint")):
        labels = np.array(rows["labels"][:])
        if 0 <= labels.min() <= labels.max() < outputs:
            return
        found = f" from {labels.min()} to {labels.max()}"
    raise DataError(
        f"labels of {name} must be whole numbers below the model's {outputs} outputs, one per example; "
        f"found {kind}{found}"
    )


def _kind(rows: Dataset, column: str) -> str:
    """What a column holds: int64, string …; of lists, how datasets writes them."""
    feature = rows.features[column]
    return str(feature.dtype) if isinstance(feature, Value | ClassLabel) else str(feature)
