"""Real data that needs no download: a small Vision Transformer trained on 300 handwritten digits."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import concatenate_datasets, disable_progress_bars

from crisp_attention.methods import AnyMethod, as_method
from crisp_attention.models.apply import sparsify
from crisp_attention.rules import Dense, RandomK, TopK
from crisp_attention.training.arguments import training_arguments
from crisp_attention.training.data import Task, load_task
from crisp_attention.training.finetune import train
from crisp_attention.training.options import FinetuneOptions
from crisp_attention.training.predictions import evaluate
from crisp_attention.training.sources import load_source


@dataclass(frozen=True)
class Configuration:
    """One line of the comparison: a method, and how to train with it."""

    method: AnyMethod
    learning_rate: float
    epochs: int

    @property
    def name(self) -> str:
        return as_method(self.method).name

    @property
    def sparsity(self) -> float:
        return as_method(self.method).sparsity or 0.0


# Learning rate and epochs were chosen for dense and for top-k 80 % each, on 100 of the 300 training
# images: benchmarks/tune_digits.py, docs/results.md. The other sparse lines, and the random control,
# use the recipe of top-k 80 %.
CONFIGURATIONS = (
    Configuration(Dense(), 3e-4, 120),
    Configuration(TopK(0.5), 3e-4, 40),
    Configuration(TopK(0.8), 3e-4, 40),
    Configuration(TopK(0.9), 3e-4, 40),
    Configuration(RandomK(0.8), 3e-4, 40),
)


def digits() -> Task:
    """The built-in digits with the whole training part, 300 images, for training."""
    task = load_task("builtin:digits")
    whole = concatenate_datasets([task.splits["train"], task.splits["validation"]])
    ordered = whole.select(np.argsort(whole["index"]))
    return replace(task, splits={"train": ordered, "test": task.splits["test"]})


def accuracy(configuration: Configuration, seed: int, task: Task) -> float:
    """Train one model on the task's train split; the accuracy on its test split."""
    transformers.set_seed(seed)
    source = load_source("builtin:vit", task, max_length=None)
    if configuration.method != Dense():  # dense keeps the model's own attention, as the fast baseline it is
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
                "use_cpu=true",
                "save_strategy=no",
                "eval_strategy=no",
                "logging_strategy=no",
                "disable_tqdm=true",
                "train_sampling_strategy=random",
                "per_device_eval_batch_size=512",
            ),
        )
        trainer = train(source, task, training_arguments(options, Path(scratch)))
        return evaluate(trainer, source.encode(task.splits["test"]))["accuracy"]


def start_worker() -> None:
    """Make this process one of several that train at the same time: one thread, no output."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
