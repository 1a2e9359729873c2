"""Choose learning rate and epochs for the digits demonstration, for dense and for top-k 80 % each.

    python benchmarks/tune_digits.py

Only the 300 training images are used: 200 to train on, 100 to validate, three splits (each with its
own seed). Prints the mean validation accuracy of every recipe, and of each method the one chosen: the
shortest training whose accuracy is within one point, one validation image, of the method's best.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedShuffleSplit

from crisp_attention.evidence.digits import Configuration, accuracy, digits, start_worker
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
        Configuration(method, rate, epochs)
        for method in (Dense(), TopK(0.8))
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
    print(means.to_string(index=False, float_format="%.4g"))
    best = means.groupby("attention")["validation accuracy (%)"].transform("max")
    near = means[means["validation accuracy (%)"] >= best - 1]
    ranked = near.sort_values(["epochs", "validation accuracy (%)"], ascending=[True, False])
    print("\nchosen:")
    print(ranked.groupby("attention").head(1).to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
