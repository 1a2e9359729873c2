"""Choose learning rate and epochs for the digits demonstration, for dense and for top-k 80 % each.

    python benchmarks/tune_digits.py

Only the 300 training images are used: 200 to train on, 100 to validate, three splits (each with its
own seed). Prints the mean validation accuracy of every recipe, and of each method the one chosen: the
shortest training whose accuracy is within one point, one validation image, of the method's best.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import concatenate_datasets
from sklearn.model_selection import StratifiedShuffleSplit

from crisp_attention.cli.demo import demo_study
from crisp_attention.cli.options import DemoOptions
from crisp_attention.cli.sweep import plan_of
from crisp_attention.methods.spec import parse
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.data import load_task
from crisp_attention.runs.evaluation import evaluate
from crisp_attention.runs.prepare import make_sparse, train
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.spec import Data
from crisp_attention.runs.terminal import be_quiet
from crisp_attention.studies.attention import as_treatment
from crisp_attention.studies.plan import Configuration

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
EPOCHS = (40, 80, 120)
SPLITS = 3
PLAN, _ = plan_of(demo_study(DemoOptions()))
RECIPE = PLAN.configurations[0].recipe
NO_LOGS = {"eval_strategy": "no", "logging_strategy": "no"}


def validation_accuracy(configuration: Configuration, seed: int) -> float:
    """Accuracy on 100 of the 300 training images after training on the other 200."""
    task = load_task(Data(source="builtin:digits"))
    images = concatenate_datasets([task.splits["train"], task.splits["validation"]])
    images = images.select(np.argsort(images["index"]))
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=100, random_state=seed)
    train_rows, held_out = next(splitter.split(np.zeros(len(images)), images["labels"]))
    task = replace(task, splits={"train": images.select(train_rows)})
    transformers.set_seed(seed)
    source = load_source("builtin:vit", task, max_length=None)
    with tempfile.TemporaryDirectory() as scratch:
        spec = PLAN.run(configuration, seed)
        make_sparse(source.model, spec)
        trainer = train(source, task, training_arguments(spec, Path(scratch)))
        return evaluate(trainer, task.target, source.encode(images.select(held_out)))["accuracy"]


def start_worker() -> None:
    """One thread for each of several processes."""
    torch.set_num_threads(1)
    be_quiet()


def main() -> None:
    recipes = [
        Configuration(
            as_treatment(parse(method)),
            replace(RECIPE, learning_rate=rate, epochs=epochs, training={**RECIPE.training, **NO_LOGS}),
        )
        for method in ("dense", "topk:sparsity=0.8")
        for rate in LEARNING_RATES
        for epochs in EPOCHS
    ]
    jobs = [(recipe, seed) for recipe in recipes for seed in range(SPLITS)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        scores = list(pool.map(validation_accuracy, *zip(*jobs, strict=True)))
    table = pd.DataFrame(
        {
            "attention": [each.label for each, _ in jobs],
            "learning rate": [each.recipe.learning_rate for each, _ in jobs],
            "epochs": [each.recipe.epochs for each, _ in jobs],
            "validation accuracy (%)": [100 * score for score in scores],
        }
    )
    means = table.groupby(["attention", "learning rate", "epochs"], sort=False).mean().reset_index()
    print(means.to_string(index=False, float_format="%.4g"))
    best = means.groupby("attention")["validation accuracy (%)"].transform("max")
    near = means[means["validation accuracy (%)"] >= best - 1]
    ranked = near.sort_values(["epochs", "validation accuracy (%)"], ascending=[True, False])
    print("\nchosen:")
    print(ranked.groupby("attention").head(1).to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
