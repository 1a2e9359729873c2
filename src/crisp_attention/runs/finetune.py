"""One fine-tuning run, from options to a run directory."""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from crisp_attention.errors import OptionError, first_line
from crisp_attention.files import finite, write_json
from crisp_attention.kernels.recording import recording
from crisp_attention.models.settings import settings_of
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.callback import SparsityCallback
from crisp_attention.runs.checkpoints import check_resuming, newest_checkpoint
from crisp_attention.runs.data import Task, load_task
from crisp_attention.runs.encoding import encoded
from crisp_attention.runs.memory import PeakMemory
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.runs.predictions import accuracy_of
from crisp_attention.runs.processes import OwnPart, agreed
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.ranks import is_main
from crisp_attention.runs.rehearsal import rehearse
from crisp_attention.runs.results import results
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.runs.sources import Source, load_source
from crisp_attention.runs.sparsity import described, make_sparse, method_of, recorded, schedule_of
from crisp_attention.runs.timing import KernelsUsed, StepTimes
from crisp_attention.runs.trainer import RunTrainer, longest_first


@dataclass(frozen=True)
class Run:
    """A finished run: what it measured, and where everything is."""

    metrics: dict[str, Any]
    directory: RunDirectory


def finetune(
    options: FinetuneOptions, console: Console | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Run:
    """Fine-tune, evaluate and leave a complete run directory; a finished run is not repeated by `resume`.

    Notes and progress go to `console`; the Trainer gets `callbacks` too. Of several processes, started by
    torchrun or accelerate launch, the main one alone writes and prints; the folder must be one that all
    see. Raises OptionError, DataError or CheckpointError, in all processes, before any training and
    before the output folder changes, for what cannot work.
    """
    console = console if console and is_main() else Console(quiet=True)
    directory = RunDirectory(options.output)
    arguments = training_arguments(options, directory.checkpoints)
    with agreed():
        method = method_of(options)
        schedule = schedule_of(options, method)
        directory.check(options, arguments.world_size)
        if options.resume and directory.complete:
            _say(console, f"the run in {directory.path} is finished; nothing is left to do")
            return Run(json.loads(directory.metrics.read_text(encoding="utf-8")), directory)
        if options.resume:
            check_resuming()
        task = load_task(
            options.dataset,
            revision=options.revision,
            text_columns=options.text_columns,
            image_column=options.image_column,
            label_column=options.label_column,
            train_examples=options.train_examples,
        )
        set_seed(options.seed)
        source = load_source(options.model, task, options.max_length)
        make_sparse(source.model, method, options)
        task = encoded(source, task)
        checkpoint, passed_over = (
            newest_checkpoint(directory.checkpoints, arguments.world_size) if options.resume else (None, ())
        )
        notes = [*source.notes, described(source.model, method, schedule, options.phase), *task.notes]
        sizes = {name: len(split) for name, split in task.splits.items()}
        resolved = {
            "command": sys.argv,
            "method": recorded(method),
            "schedule": asdict(schedule) if schedule else None,
            "task": {
                "text_columns": task.text_columns,
                "image_column": task.image_column,
                "label_names": task.label_names,
                "examples": sizes,
            },
            "processes": arguments.world_size,
            "notes": notes,
        }
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(
            directory.tensorboard
        )  # read when --report-to asks for it
        progress, kernels, memory = RunProgress(console), KernelsUsed(), PeakMemory()
        warn = warnings.warn if console.quiet else partial(_say, console)
        scheduled = [SparsityCallback(schedule, warn)] if schedule else []
        trainer, times = build(source, task, arguments, [*scheduled, progress, kernels, memory, *callbacks])
        if unmeasured := rehearse(trainer, source, task):
            notes.append(f"attention: dense, not looked into: {unmeasured}")
    with agreed():
        if is_main():
            directory.claim(options, resolved)
    _say(console, *notes, f"examples: {', '.join(f'{size:,} {name}' for name, size in sizes.items())}")
    if options.resume:
        _say(console, *passed_over, f"continuing from {checkpoint.name if checkpoint else 'the beginning'}")

    with progress, recording() as kernels.used:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        metrics = results(trainer, source, task, directory, progress, measured=unmeasured is None)
    metrics |= {
        "steps": trainer.state.global_step,
        "seconds_per_step": times.median(),
        "train_seconds": times.total(),
        # of the process that took most
        "peak_memory_bytes": max(gather_object([memory.peak])),
        "peak_memory_of": "training" if memory.of_training else "process",
        "device": str(arguments.device),
        "kernels": sorted(kernels.used)
        if settings_of(source.model)
        else [source.model.config._attn_implementation],
    }
    metrics = finite(gather_object([metrics])[0])  # the main process's times
    with agreed():
        if not options.discard_model:
            trainer.save_model(str(directory.model))
        if is_main():
            _finish(directory, metrics, source)
    return Run(metrics, directory)


def _finish(directory: RunDirectory, metrics: dict[str, Any], source: Source) -> None:
    if directory.model.is_dir():
        (directory.model / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.json says the same
        if source.processor is not None:
            source.processor.save_pretrained(directory.model)
    write_json(directory.metrics, metrics)  # last: its presence says that the run is complete
    shutil.rmtree(directory.checkpoints, ignore_errors=True)


def train(source: Source, task: Task, arguments: TrainingArguments) -> Trainer:
    """Train the source's model on the task with transformers' Trainer. Raises as `build` does."""
    trainer, _ = build(source, encoded(source, task), arguments)
    trainer.train()
    return trainer


def build(
    source: Source,
    task: Task,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, StepTimes]:
    """A Trainer ready to start on the encoded task, its optimizer and learning rate schedule tried.

    The disk stays as it was. Raises OptionError for what the arguments ask for and cannot be had, such as a package.
    """
    times = StepTimes()
    validation = task.splits.get("validation")
    # the Trainer repeats each loss as often as a batch may have examples, however few there are
    arguments.per_device_eval_batch_size = min(
        arguments.per_device_eval_batch_size, max(map(len, task.splits.values()))
    )
    try:
        with _no_new_folders(Path(str(arguments.output_dir))):
            trainer = RunTrainer(
                model=source.model,
                args=arguments,
                train_dataset=task.splits["train"],
                eval_dataset=longest_first(validation) if validation is not None else None,
                data_collator=source.collate,
                compute_metrics=accuracy_of,
                preprocess_logits_for_metrics=lambda logits, labels: (
                    logits[0] if isinstance(logits, tuple) else logits
                ),
                callbacks=[OwnPart(), times, *callbacks],
            )
            trainer.create_optimizer()
            scratch = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
            trainer.create_scheduler(num_training_steps=100, optimizer=scratch)  # training makes its own
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"the run cannot start: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)  # prints raw dictionaries
    return trainer, times


@contextmanager
def _no_new_folders(path: Path) -> Iterator[None]:
    """Undo that the main process's Trainer makes its output folder, and those above it, when it is built."""
    new = [folder for folder in (path, *path.parents) if is_main() and not folder.exists()]
    try:
        yield
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def _say(console: Console, *notes: str) -> None:
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
