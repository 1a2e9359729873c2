"""The demonstration: does sparse attention help a small Vision Transformer on few images?"""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import concatenate_datasets, disable_progress_bars
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from crisp_attention.evidence.figures import draw_accuracy
from crisp_attention.evidence.options import DemoOptions
from crisp_attention.evidence.statistics import mean_interval, paired_difference
from crisp_attention.methods import AnyMethod, as_method
from crisp_attention.models.apply import sparsify
from crisp_attention.rules import Dense, RandomK, TopK
from crisp_attention.training.arguments import training_arguments
from crisp_attention.training.data import Task, load_task
from crisp_attention.training.finetune import train
from crisp_attention.training.options import FinetuneOptions, OptionError
from crisp_attention.training.predictions import evaluate
from crisp_attention.training.sources import load_source


@dataclass(frozen=True)
class Configuration:
    """One line of the comparison, with the recipe that its own validation chose."""

    name: str
    method: AnyMethod
    learning_rate: float
    epochs: int

    @property
    def sparsity(self) -> float:
        return as_method(self.method).sparsity or 0.0


# Learning rate and epochs were chosen for dense and for top-k 80 % each, on 100 of the 300 training
# images: benchmarks/tune_digits.py, docs/results.md. The other sparse lines
# and the random control use the recipe of top-k 80 %.
CONFIGURATIONS = (
    Configuration("dense", Dense(), 1e-3, 40),
    Configuration("top-k 50 %", TopK(0.5), 1e-3, 40),
    Configuration("top-k 80 %", TopK(0.8), 1e-3, 40),
    Configuration("top-k 90 %", TopK(0.9), 1e-3, 40),
    Configuration("random 80 %", RandomK(0.8), 1e-3, 40),
)
BASELINE = CONFIGURATIONS[0].name


def digits() -> Task:
    """The built-in digits with the whole training part, 300 images, for training."""
    task = load_task("builtin:digits")
    whole = concatenate_datasets([task.splits["train"], task.splits["validation"]])
    ordered = whole.select(np.argsort(whole["index"]))
    return replace(task, splits={"train": ordered, "test": task.splits["test"]})


def accuracy(configuration: Configuration, seed: int, task: Task) -> float:
    """Train one model on the task's train split; the accuracy on its test split."""
    transformers.set_seed(seed)
    source = load_source("builtin:vit", task, max_length=0)
    if configuration.name != BASELINE:
        sparsify(source.model, configuration.method)
    with tempfile.TemporaryDirectory() as scratch:
        options = FinetuneOptions(
            model="builtin:vit",
            dataset="builtin:digits",
            output=Path(scratch),
            epochs=configuration.epochs,
            learning_rate=configuration.learning_rate,
            seed=seed,
            training=(
                "save_strategy=no",
                "eval_strategy=no",
                "logging_strategy=no",
                "disable_tqdm=true",
                "train_sampling_strategy=random",
                "per_device_eval_batch_size=512",
            ),
        )
        trainer, _ = train(source, task, training_arguments(options, Path(scratch)), schedule=None)
        return evaluate(trainer, source.encode(task.splits["test"]))["accuracy"]


def run_demo(options: DemoOptions) -> pd.DataFrame:
    """Run every configuration with every seed; write results.csv and accuracy.png; print the table.

    Returns one row per run: configuration, sparsity, seed, accuracy.
    """
    if options.seeds < 2 or options.workers < 1:
        raise OptionError(
            f"--seeds must be at least 2 and --workers at least 1, got {options.seeds} and {options.workers}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = _run_all(options, console)
    results.to_csv(options.output / "results.csv", index=False)
    draw_accuracy(results, BASELINE, options.output / "accuracy.png")
    console.print(table(results))
    for what, name in (("every run", "results.csv"), ("picture", "accuracy.png")):
        console.print(f"{what}: {options.output / name}", highlight=False)
    return results


def _run_all(options: DemoOptions, console: Console) -> pd.DataFrame:
    jobs = [(number, seed) for seed in range(options.seeds) for number in range(len(CONFIGURATIONS))]
    rows = []
    pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=start_worker)
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, pool:
        bar = progress.add_task("training", total=len(jobs))
        futures = {pool.submit(_job, *job): job for job in jobs}
        for future in as_completed(futures):
            number, seed = futures[future]
            rows.append((number, seed, future.result()))
            progress.advance(bar)
    runs = sorted(rows)
    return pd.DataFrame(
        {
            "configuration": [CONFIGURATIONS[number].name for number, _, _ in runs],
            "sparsity": [CONFIGURATIONS[number].sparsity for number, _, _ in runs],
            "seed": [seed for _, seed, _ in runs],
            "accuracy": [accuracy for _, _, accuracy in runs],
        }
    )


def table(results: pd.DataFrame) -> Table:
    """Test accuracy per configuration and its difference to dense, with 95 % t-intervals over seeds."""
    by_seed = results.pivot(index="seed", columns="configuration", values="accuracy") * 100
    seeds = len(by_seed)
    rich = Table(title=f"Test accuracy on 1,497 digits after training on 300 ({seeds} seeds, 95 % intervals)")
    for heading in ("attention", "accuracy", "difference to dense"):
        rich.add_column(heading, justify="left" if heading == "attention" else "right")
    for name in results["configuration"].unique():
        mean = mean_interval(by_seed[name].tolist())
        cells = [name, f"{mean.mean:.1f} ± {mean.half_width:.1f} %"]
        if name == BASELINE:
            cells.append("")
        else:
            gap = paired_difference(by_seed[name].tolist(), by_seed[BASELINE].tolist())
            cells.append(f"{gap.mean:+.1f} points ({gap.low:+.1f} to {gap.high:+.1f})")
        rich.add_row(*cells)
    return rich


def start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()


def _job(number: int, seed: int) -> float:
    return accuracy(CONFIGURATIONS[number], seed, digits())
