"""Pictures of a comparison."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from crisp_attention.evidence.statistics import mean_interval

DENSE, SPARSE, RANDOM = "#555555", "#0072B2", "#D55E00"


def draw_accuracy(results: pd.DataFrame, baseline: str, path: Path) -> None:
    """Accuracy against sparsity: every seed a dot, 95 % intervals, the baseline as a band.

    `results` has the columns configuration, sparsity, seed, accuracy.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    dense = mean_interval((results.loc[results["configuration"] == baseline, "accuracy"] * 100).tolist())
    axes.axhspan(dense.low, dense.high, color=DENSE, alpha=0.15, linewidth=0)
    axes.axhline(dense.mean, color=DENSE, linewidth=1)
    axes.annotate(
        "dense (mean, 95 % interval)",
        (0.01, dense.mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=DENSE,
        va="bottom",
    )
    for name, runs in results.groupby("configuration", sort=False):
        colour = DENSE if name == baseline else RANDOM if "random" in str(name) else SPARSE
        x = 100 * runs["sparsity"].iloc[0]
        values = 100 * runs["accuracy"]
        axes.plot([x] * len(values), values, "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
        if name != baseline:
            mean = mean_interval(values.tolist())
            axes.errorbar(
                x + 1.5, mean.mean, yerr=mean.half_width, fmt="_", color=colour, capsize=3, markersize=9
            )
            axes.annotate(
                str(name),
                (x + 1.5, mean.mean),
                xytext=(7, 0),
                textcoords="offset points",
                color=colour,
                va="center",
            )
    axes.set(
        xlabel="attention sparsity (% of valid keys dropped per query)",
        ylabel="test accuracy (%)",
        title="Handwritten digits, Vision Transformer trained on 300 images",
        xlim=(-3, 108),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
