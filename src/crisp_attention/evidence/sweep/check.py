"""What can be known to be impossible before a study begins."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import set_seed

from crisp_attention.evidence.options import SweepOptions
from crisp_attention.evidence.study import Configuration
from crisp_attention.evidence.sweep.plan import run_options
from crisp_attention.models.apply import densify
from crisp_attention.models.settings import settings_of
from crisp_attention.training.arguments import training_arguments
from crisp_attention.training.data import load_task
from crisp_attention.training.options import OptionError
from crisp_attention.training.sources import load_source
from crisp_attention.training.sparsity import make_sparse, method_of

KNOWN = {
    "study.json",
    "study.partial",
    "study.db",
    "study.db.lock",
    "study.db-journal",
    "runs",
    "logs",
    "report",
    "search",
    "search.csv",
}


def check(options: SweepOptions, configurations: Sequence[Configuration], console: Console) -> int:
    """Read the data and the model, and make it sparse in every way that is planned; the model's attention layers.

    Raises OptionError, DataError or CheckpointError for what could not run. Notes go to `console`.
    """
    least = 2 if options.search else 1
    for flag, value in (
        ("--seeds", options.seeds),
        ("--workers", options.workers),
        ("--trials", options.trials),
    ):
        if value < (least if flag == "--seeds" else 1):
            raise OptionError(f"{flag} must be at least {least if flag == '--seeds' else 1}, got {value}")
    _check_folder(options.output)
    training_arguments(run_options(options, configurations[0], 0, options.output), options.output / "unused")
    task = load_task(
        options.dataset,
        text_columns=options.text_columns,
        image_column=options.image_column,
        label_column=options.label_column,
        train_examples=options.train_examples,
    )
    set_seed(0)
    source = load_source(options.model, task, options.max_length)
    layers = 0
    for each in configurations:
        run = run_options(options, each, 0, options.output)
        make_sparse(source.model, method_of(run), run)
        layers = max(layers, len(settings_of(source.model)))
        if settings_of(source.model):
            densify(source.model)
    for note in (*source.notes, *task.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return layers


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise OptionError(f"--output {path} is a file; expected a folder")
    foreign = sorted(each.name for each in path.iterdir() if each.name not in KNOWN) if path.is_dir() else []
    if foreign:
        raise OptionError(
            f"--output {path} holds files that are not of a study ({', '.join(foreign[:5])}); choose another folder"
        )
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"--output {path}: nothing can be written in {there}; choose another folder")
