"""transformers' TrainingArguments from the options of a run."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import is_liger_kernel_available

from crisp_attention.errors import OptionError, did_you_mean, first_line
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.task.metrics import LOWER_IS_BETTER, NAMES

# Fields that `training` does not take, and why.
RESERVED = {
    "output_dir": "the run has its own folder",
    "num_train_epochs": "epochs=NUMBER sets it",
    "per_device_train_batch_size": "batch_size=NUMBER sets it",
    "learning_rate": "learning_rate=NUMBER sets it",
    "seed": "seed=NUMBER sets it",
    "report_to": "report_to=NAME sets it",
    "hub_token": "it would be written into the run's folder; log in with `hf auth login`",
    "run_name": "the name of the output folder is used",
    "resume_from_checkpoint": "resume=True sets it",
    "remove_unused_columns": "the run sets it itself",
    "prediction_loss_only": "the run keeps the prediction of every example",
    "batch_eval_metrics": "the run keeps the prediction of every example",
    "eval_do_concat_batches": "the run keeps the predictions of all batches in one table",
    "dataloader_drop_last": "the run evaluates every example",
    "label_names": "the labels are the data's label column",
    "restore_callback_states_from_checkpoint": "the run restores what it needs itself",
    "dataloader_multiprocessing_context": "the run's batches can only be made by forked workers",
    "debug": "its overflow check fails on boolean masks",
    "logging_nan_inf_filter": "the run reports a loss that is not finite as it is",
}


def training_arguments(spec: RunSpec, checkpoints: Path) -> TrainingArguments:
    """Evaluate and checkpoint every epoch, group by length; the recipe's `training` overrides anything.

    Raises OptionError for a field that does not exist, a value it does not accept, a field that the run sets
    itself, and one with which a run cannot finish.
    """
    recipe = spec.recipe
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * recipe.batch_size,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 0.02,
        "logging_nan_inf_filter": False,  # it would show a diverged run with the losses of the other batches
        "train_sampling_strategy": "group_by_length",
        "disable_tqdm": True,
    }
    if spec.treatment is not None or spec.data.has_classes:
        defaults["eval_on_start"] = True  # what the model could do before
    if spec.metric is not None:
        defaults["metric_for_best_model"] = spec.metric
    given = _given(recipe.training)
    try:
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=spec.seed,
            report_to=recipe.report_to,
            run_name=checkpoints.parent.name,
            remove_unused_columns=False,
            **{**defaults, **given},
        )
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"training: {first_line(error)}", "training") from error
    if "greater_is_better" not in given and arguments.metric_for_best_model is not None:
        arguments.greater_is_better = (
            arguments.metric_for_best_model.removeprefix("eval_") not in LOWER_IS_BETTER
        )
    if "dataloader_pin_memory" not in given:  # pinned memory speeds up copies to CUDA devices alone
        arguments.dataloader_pin_memory = arguments.device.type == "cuda"
    _check(arguments)
    return arguments


def _check(arguments: TrainingArguments) -> None:
    """Raises OptionError for values that TrainingArguments accepts but that stop the run later."""
    for name in ("per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            raise _refused(f"{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.max_steps == 0:
        raise _refused("max_steps must be at least 1, or -1 to train by epochs; got 0")
    if arguments.train_sampling_strategy == "batch_rebalance":
        raise _refused(
            "train_sampling_strategy: batch_rebalance uses the same order of examples with every seed; "
            "expected group_by_length, random or sequential"
        )
    best = arguments.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in ("loss", *NAMES):
        raise _refused(f"metric_for_best_model must be loss, {', '.join(NAMES)}; got {best}")
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        raise _refused("dataloader_persistent_workers needs dataloader_num_workers")
    accelerator: Any = arguments.accelerator_config
    if not accelerator.even_batches and arguments.world_size > 1:
        raise _refused("accelerator_config: even_batches must be true with several processes, got false")
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise _refused("use_liger_kernel needs the package liger-kernel")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _refused(re.sub(r"^argument --(\w+)[^:]*", r"\1", message))


def _given(training: Mapping[str, str]) -> dict[str, Any]:
    if not training:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    for key in training:
        if key not in known:
            raise _refused(
                f"{key}: transformers.TrainingArguments has no such field{did_you_mean(key, known)}"
            )
        if key in RESERVED:
            raise _refused(f"{key}: {RESERVED[key]}")
    arguments: Any = TrainingArguments
    words = [f"--{key}={text}" for key, text in training.items() if text != "None"]
    parsed, _ = _Parser(arguments).parse_known_args(words)
    return {key: None if text == "None" else getattr(parsed, key) for key, text in training.items()}


def _refused(message: str) -> OptionError:
    return OptionError(f"training {message}", "training")
