"""Choose learning rate and epochs for the digits demonstration, for dense and for top-k 80 % each.

    python benchmarks/tune_digits.py

Only the 300 training images are used: 200 to train on, 100 to validate, three splits (each with its
own seed). Prints the mean validation accuracy of every recipe and the best one of each method.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedShuffleSplit

from crisp_attention.evidence.demo import Configuration, accuracy, digits, start_worker
from crisp_attention.rules import Dense, TopK

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
EPOCHS = (40, 80, 120)
SPLITS = 3


def validation_accuracy(configuration: Configuration, seed: int) -> float:
    task = digits()
    images = task.splits["train"]
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=100, random_state=seed)
    train, held_out = next(splitter.split(np.zeros(len(images)), images["labels"]))
    return accuracy(
        configuration,
        seed,
        replace(task, splits={"train": images.select(train), "test": images.select(held_out)}),
    )


def main() -> None:
    recipes = [
        Configuration(name, method, rate, epochs)
        for name, method in (("dense", Dense()), ("top-k 80 %", TopK(0.8)))
        for rate in LEARNING_RATES
        for epochs in EPOCHS
    ]
    jobs = [(recipe, seed) for recipe in recipes for seed in range(SPLITS)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        scores = list(pool.map(validation_accuracy, *zip(*jobs, strict=True)))
    table = pd.DataFrame(
        {
            "attention": [recipe.name for recipe, _ in jobs],
            "learning rate": [recipe.learning_rate for recipe, _ in jobs],
            "epochs": [recipe.epochs for recipe, _ in jobs],
            "validation accuracy (%)": [100 * score for score in scores],
        }
    )
    means = table.groupby(["attention", "learning rate", "epochs"], sort=False).mean().reset_index()
    print(means.round(2).to_string(index=False))
    print("\nbest of each:")
    print(
        means.loc[means.groupby("attention", sort=False).idxmax()["validation accuracy (%)"]].to_string(
            index=False
        )
    )


if __name__ == "__main__":
    main()
