"""transformers' TrainingArguments from the options of a run."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from crisp_attention.training.options import FinetuneOptions, OptionError

# Fields that the run sets itself, and the flag that sets them.
RESERVED = {
    "output_dir": "--output",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "seed": "--seed",
    "resume_from_checkpoint": "--resume",
    "remove_unused_columns": None,
}


def training_arguments(options: FinetuneOptions, checkpoints: Path) -> TrainingArguments:
    """Evaluate and checkpoint every epoch, group by length; `--training KEY=VALUE` overrides anything.

    Raises OptionError for a field that does not exist, a value it does not take, or a field that
    has a flag of its own.
    """
    for flag, value in (("--epochs", options.epochs), ("--learning-rate", options.learning_rate)):
        if not value > 0:
            raise OptionError(f"{flag} must be positive, got {value}")
    if options.batch_size < 1:
        raise OptionError(f"--batch-size must be at least 1, got {options.batch_size}")
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * options.batch_size,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 0.02,
        "report_to": "none",
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    given = _given(options.training)
    try:
        return TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            remove_unused_columns=False,
            **{**defaults, **given},
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"--training: {error}") from error


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(re.sub(r"^argument --(\w+)[^:]*", r"--training \1", message))


def _given(pairs: tuple[str, ...]) -> dict[str, Any]:
    if not pairs:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise OptionError(f"--training expects KEY=VALUE, got {pair!r}")
        if key not in known:
            raise OptionError(f"--training {key}: transformers.TrainingArguments has no such field")
        if key in RESERVED:
            raise OptionError(f"--training {key}: set by {RESERVED[key] or 'the run itself'}")
        given[key] = text
    arguments: Any = TrainingArguments
    words = [f"--{key}={text}" for key, text in given.items() if text != "None"]
    parsed, _ = _Parser(arguments).parse_known_args(words)
    return {key: None if text == "None" else getattr(parsed, key) for key, text in given.items()}
