"""One fine-tuning run, from options to a run directory."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from crisp_attention.methods import Method, parse
from crisp_attention.models.apply import densify, sparsify
from crisp_attention.models.measuring import measuring
from crisp_attention.rules import Dense
from crisp_attention.schedule import Schedule
from crisp_attention.training.arguments import training_arguments
from crisp_attention.training.callback import SparsityCallback
from crisp_attention.training.checkpoints import newest_checkpoint
from crisp_attention.training.data import Task, load_task
from crisp_attention.training.figures import draw_heads, draw_learning
from crisp_attention.training.options import FinetuneOptions, OptionError
from crisp_attention.training.predictions import accuracy_of, evaluate
from crisp_attention.training.run_directory import RunDirectory
from crisp_attention.training.sources import Source, load_source
from crisp_attention.training.timing import StepTimes, peak_memory

MEASURED_EXAMPLES = 512
TRAIN_EXAMPLES_EVALUATED = 2000


@dataclass(frozen=True)
class Run:
    """A finished run: what it measured, what the user should know, and where everything is."""

    metrics: dict[str, Any]
    notes: tuple[str, ...]
    directory: RunDirectory


def finetune(options: FinetuneOptions) -> Run:
    """Fine-tune, evaluate and leave a complete run directory.

    Raises OptionError, DataError or CheckpointError, before any training, for what cannot work.
    """
    method = method_of(options)
    schedule = schedule_of(options, method)
    directory = RunDirectory(options.output)
    arguments = training_arguments(options, directory.checkpoints)
    task = load_task(
        options.dataset,
        text_columns=options.text_columns,
        image_column=options.image_column,
        label_column=options.label_column,
        train_examples=options.train_examples,
    )
    set_seed(options.seed)
    source = load_source(options.model, task, options.max_length)
    make_sparse(source.model, method, options)
    directory.claim(options)
    checkpoint, notes = newest_checkpoint(directory.checkpoints) if options.resume else (None, ())
    directory.write_config(
        options,
        {
            "command": sys.argv,
            "method": method.to_dict(),
            "schedule": schedule,
            "task": {
                "text_columns": task.text_columns,
                "image_column": task.image_column,
                "label_names": task.label_names,
                "examples": {name: len(split) for name, split in task.splits.items()},
                "notes": task.notes,
            },
        },
    )
    trainer, times = train(source, task, arguments, schedule, checkpoint)
    metrics = results(trainer, source, task, method, directory)
    metrics |= {
        "steps": trainer.state.global_step,
        "seconds_per_step": times.median(),
        "peak_memory_bytes": peak_memory(),
        "device": str(arguments.device),
    }
    draw_learning(trainer.state.log_history, directory.figures / "learning.png")
    trainer.save_model(str(directory.model))
    if source.processor is not None:
        source.processor.save_pretrained(directory.model)
    directory.write_json(directory.metrics, metrics)  # last: its presence says that the run is complete
    shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return Run(metrics, (*task.notes, *notes), directory)


def method_of(options: FinetuneOptions) -> Method:
    """The method that the options name. Raises OptionError for what does not fit together."""
    given = {"sparsity": options.sparsity, "width": options.width, "global_tokens": options.global_tokens}
    try:
        return parse(options.method, **{name: value for name, value in given.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise OptionError(f"--method {options.method}: {error}") from error


def schedule_of(options: FinetuneOptions, method: Method) -> Schedule | None:
    """The sparsity schedule that the options name, None for a constant sparsity."""
    if options.schedule == "constant":
        if options.ramp is not None:
            raise OptionError("--ramp needs a --schedule that rises: linear, cosine or cubic")
        return None
    if method.sparsity is None:
        raise OptionError(f"--schedule needs a method with a sparsity, got {method.name!r}")
    begin, end = options.ramp or (0.0, 0.5)
    try:
        return Schedule(final=method.sparsity, shape=options.schedule, begin=begin, end=end)
    except ValueError as error:
        raise OptionError(f"--ramp: {error}") from error


def make_sparse(model: PreTrainedModel, method: Method, options: FinetuneOptions) -> None:
    """Apply the method. A dense run keeps the model's own attention, the honest baseline for time."""
    if method == Method():
        if options.layers:
            raise OptionError("--layers has no meaning with --method dense")
        return
    try:
        sparsify(
            model, method, layers=options.layers or None, phase=options.phase, attention=options.attention
        )
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error


def train(
    source: Source,
    task: Task,
    arguments: TrainingArguments,
    schedule: Schedule | None,
    checkpoint: Path | None = None,
) -> tuple[Trainer, StepTimes]:
    """Train the source's model on the task with transformers' Trainer."""
    times = StepTimes()
    trainer = Trainer(
        model=source.model,
        args=arguments,
        train_dataset=source.encode(task.splits["train"]),
        eval_dataset=source.encode(task.splits["validation"]) if "validation" in task.splits else None,
        data_collator=source.collate,
        compute_metrics=accuracy_of,
        preprocess_logits_for_metrics=lambda logits, labels: (
            logits[0] if isinstance(logits, tuple) else logits
        ),
        callbacks=[times, *([SparsityCallback(schedule)] if schedule else [])],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, times


def results(
    trainer: Trainer, source: Source, task: Task, method: Method, directory: RunDirectory
) -> dict[str, Any]:
    """Evaluate every split and measure the attention; writes predictions, measurements and figures."""
    metrics: dict[str, Any] = {}
    for name in ("validation", "test"):
        if name in task.splits:
            encoded = source.encode(task.splits[name])
            metrics[name] = evaluate(trainer, encoded, directory.predictions(name))
    train_part = task.splits["train"].select(range(min(len(task.splits["train"]), TRAIN_EXAMPLES_EVALUATED)))
    metrics["train"] = evaluate(trainer, source.encode(train_part))

    shown = task.splits["validation"]
    sample = source.encode(shown.select(range(min(len(shown), MEASURED_EXAMPLES))))
    dense = method == Method()
    if dense:
        sparsify(source.model, Dense())
    try:
        with measuring(source.model) as measured, torch.no_grad():
            trainer.predict(sample)
    finally:
        if dense:
            densify(source.model)
    table = measured.table()
    table.to_csv(directory.measurements, index=False)
    draw_heads(table, directory.figures / "heads.png")
    summary = measured.summary()
    metrics["achieved_sparsity"] = summary["sparsity"]
    metrics["kept_mass"] = summary["kept_mass"]
    metrics["entropy"] = summary["entropy"]
    return metrics
