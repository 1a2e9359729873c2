"""One fine-tuning run, from options to a run directory."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from crisp_attention.schedule import Schedule
from crisp_attention.training.arguments import training_arguments
from crisp_attention.training.callback import SparsityCallback
from crisp_attention.training.checkpoints import newest_checkpoint
from crisp_attention.training.data import Task, load_task
from crisp_attention.training.options import FinetuneOptions
from crisp_attention.training.predictions import accuracy_of
from crisp_attention.training.progress import RunProgress
from crisp_attention.training.results import results
from crisp_attention.training.run_directory import RunDirectory
from crisp_attention.training.sources import Source, load_source
from crisp_attention.training.sparsity import described, make_sparse, method_of, schedule_of
from crisp_attention.training.timing import StepTimes, peak_memory
from crisp_attention.training.trainer import RunTrainer, longest_first


@dataclass(frozen=True)
class Run:
    """A finished run: what it measured, and where everything is."""

    metrics: dict[str, Any]
    directory: RunDirectory


def finetune(options: FinetuneOptions, console: Console | None = None) -> Run:
    """Fine-tune, evaluate and leave a complete run directory; a finished run is not repeated by `resume`.

    Notes and progress go to `console`. Raises OptionError, DataError or CheckpointError, before any
    training and before the output folder changes, for what cannot work.
    """
    console = console or Console(quiet=True)
    directory = RunDirectory(options.output)
    method = method_of(options)
    schedule = schedule_of(options, method)
    arguments = training_arguments(options, directory.checkpoints)
    directory.check(options)
    if options.resume and directory.complete:
        _say(console, f"the run in {directory.path} is finished; nothing is left to do")
        return Run(json.loads(directory.metrics.read_text(encoding="utf-8")), directory)
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
    checkpoint, passed_over = newest_checkpoint(directory.checkpoints) if options.resume else (None, ())
    notes = [*source.notes, described(source.model, method, schedule, options.phase), *task.notes]
    sizes = {name: len(split) for name, split in task.splits.items()}
    resolved = {
        "command": sys.argv,
        "method": method.to_dict(),
        "schedule": asdict(schedule) if schedule else None,
        "task": {
            "text_columns": task.text_columns,
            "image_column": task.image_column,
            "label_names": task.label_names,
            "examples": sizes,
        },
        "notes": notes,
    }
    directory.claim(options, resolved)
    _say(console, *notes, f"examples: {', '.join(f'{size:,} {name}' for name, size in sizes.items())}")
    if options.resume:
        _say(console, *passed_over, f"continuing from {checkpoint.name if checkpoint else 'the beginning'}")

    with RunProgress(console) as progress:
        trainer, times = train(source, task, arguments, schedule, checkpoint, [progress])
        metrics = results(trainer, source, task, directory, progress)
    metrics |= {
        "steps": trainer.state.global_step,
        "seconds_per_step": times.median(),
        "train_seconds": times.total(),
        "peak_memory_bytes": peak_memory(),
        "device": str(arguments.device),
    }
    trainer.save_model(str(directory.model))
    (directory.model / "training_args.bin").unlink()  # a pickle; config.json says the same
    if source.processor is not None:
        source.processor.save_pretrained(directory.model)
    directory.write_json(directory.metrics, metrics)  # last: its presence says that the run is complete
    shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return Run(metrics, directory)


def train(
    source: Source,
    task: Task,
    arguments: TrainingArguments,
    schedule: Schedule | None,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, StepTimes]:
    """Train the source's model on the task with transformers' Trainer."""
    times = StepTimes()
    validation = task.splits.get("validation")
    trainer = RunTrainer(
        model=source.model,
        args=arguments,
        train_dataset=source.encode(task.splits["train"]),
        eval_dataset=longest_first(source.encode(validation)) if validation is not None else None,
        data_collator=source.collate,
        compute_metrics=accuracy_of,
        preprocess_logits_for_metrics=lambda logits, labels: (
            logits[0] if isinstance(logits, tuple) else logits
        ),
        callbacks=[times, *([SparsityCallback(schedule)] if schedule else []), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # prints raw dictionaries
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, times


def _say(console: Console, *notes: str) -> None:
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
