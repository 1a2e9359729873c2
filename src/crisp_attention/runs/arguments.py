"""transformers' TrainingArguments from the options of a run."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import is_liger_kernel_available

from crisp_attention.errors import OptionError, first_line
from crisp_attention.runs.options import FinetuneOptions

# Fields that `--training` does not take, and why.
RESERVED = {
    "output_dir": "set by --output",
    "num_train_epochs": "set by --epochs",
    "per_device_train_batch_size": "set by --batch-size",
    "learning_rate": "set by --learning-rate",
    "seed": "set by --seed",
    "report_to": "set by --report-to",
    "hub_token": "it would be written into the run's folder; log in with `hf auth login`",
    "run_name": "the name of the output folder",
    "resume_from_checkpoint": "set by --resume",
    "remove_unused_columns": "set by the run itself",
    "prediction_loss_only": "the run keeps the prediction of every example",
    "batch_eval_metrics": "the run keeps the prediction of every example",
    "eval_do_concat_batches": "the run keeps the predictions of all batches in one table",
    "dataloader_drop_last": "the run evaluates every example",
    "label_names": "the labels are the column that --label-column names",
    "restore_callback_states_from_checkpoint": "the run restores what it needs itself",
    "dataloader_multiprocessing_context": "only forked workers can make the run's batches",
    "debug": "its check for overflow stops at boolean masks",
    "logging_nan_inf_filter": "a loss that is not finite is reported as it is",
}
METRICS = ("loss", "accuracy")
SEEDS = 2**32  # as numpy takes them


def training_arguments(options: FinetuneOptions, checkpoints: Path) -> TrainingArguments:
    """Evaluate and checkpoint every epoch, group by length; `--training KEY=VALUE` overrides anything.

    Raises OptionError for a field that does not exist, a value it does not take, a field that has a
    flag of its own, and one with which a run cannot end.
    """
    for flag, value in (("--epochs", options.epochs), ("--learning-rate", options.learning_rate)):
        if not 0 < value < float("inf"):
            raise OptionError(f"{flag} must be positive and finite, got {value}")
    if not 0 <= options.seed < SEEDS:
        raise OptionError(f"--seed must be in 0 to {SEEDS - 1}, got {options.seed}")
    if options.batch_size < 1:
        raise OptionError(f"--batch-size must be at least 1, got {options.batch_size}")
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * options.batch_size,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 0.02,
        "logging_nan_inf_filter": False,  # it would show a diverged run with the losses of the other batches
        "train_sampling_strategy": "group_by_length",
        "disable_tqdm": True,
    }
    given = _given(options.training)
    try:
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            report_to=options.report_to,
            run_name=options.output.name,
            remove_unused_columns=False,
            **{**defaults, **given},
        )
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"--training: {first_line(error)}") from error
    if "dataloader_pin_memory" not in given:  # pinned memory speeds up copies to CUDA devices alone
        arguments.dataloader_pin_memory = arguments.device.type == "cuda"
    _check(arguments)
    return arguments


def _check(arguments: TrainingArguments) -> None:
    """Raises OptionError for values that TrainingArguments takes and that stop the run later."""
    for name in ("per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            raise OptionError(f"--training {name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.max_steps == 0:
        raise OptionError("--training max_steps must be at least 1, or -1 for --epochs; got 0")
    if arguments.train_sampling_strategy == "batch_rebalance":
        raise OptionError(
            "--training train_sampling_strategy: batch_rebalance takes the same order of examples with every seed; "
            "expected group_by_length, random or sequential"
        )
    metric = arguments.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in METRICS:
        raise OptionError(f"--training metric_for_best_model must be {' or '.join(METRICS)}, got {metric}")
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        raise OptionError("--training dataloader_persistent_workers needs dataloader_num_workers")
    accelerator: Any = arguments.accelerator_config
    if not accelerator.even_batches and arguments.world_size > 1:
        raise OptionError("--training accelerator_config: with several processes, even_batches must be true")
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise OptionError("--training use_liger_kernel needs the package liger-kernel")


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
            raise OptionError(f"--training {key}: {RESERVED[key]}")
        given[key] = text
    arguments: Any = TrainingArguments
    words = [f"--{key}={text}" for key, text in given.items() if text != "None"]
    parsed, _ = _Parser(arguments).parse_known_args(words)
    return {key: None if text == "None" else getattr(parsed, key) for key, text in given.items()}
