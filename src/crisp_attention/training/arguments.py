"""transformers' TrainingArguments from the options of a run."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from crisp_attention.training.options import FinetuneOptions, OptionError


def training_arguments(options: FinetuneOptions, checkpoints: Path) -> TrainingArguments:
    """Evaluate and checkpoint every epoch, group by length; `--training KEY=VALUE` overrides anything.

    Raises OptionError for a field that does not exist, a value it does not take, or a field that
    has a flag of its own.
    """
    own: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * options.batch_size,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 0.02,
        "report_to": "none",
        "remove_unused_columns": False,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": False,
    }
    if options.epochs <= 0 or options.batch_size < 1:
        raise OptionError(
            f"--epochs must be positive and --batch-size at least 1, got {options.epochs} and {options.batch_size}"
        )
    given = dict(_key_value(pair) for pair in options.training)
    if clash := sorted(set(given) & set(own)):
        raise OptionError(f"--training {clash[0]}: this field is set by another flag (or by the run itself)")
    names = {f.name for f in fields(TrainingArguments)}
    if unknown := sorted(set(given) - names):
        raise OptionError(f"--training {unknown[0]}: transformers.TrainingArguments has no such field")
    try:
        return TrainingArguments(**own, **{**defaults, **given})
    except (TypeError, ValueError) as error:
        raise OptionError(f"--training: {error}") from error


def _key_value(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise OptionError(f"--training expects KEY=VALUE, got {pair!r}")
    try:
        return key, json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return key, text
