"""Pictures of a comparison. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from crisp_attention.evidence.statistics import mean_interval

DENSE = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw_accuracy(results: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy against sparsity: every seed a dot, means with 95 % intervals, dense as a band.

    `results` has the columns method, sparsity, seed, accuracy; the method `dense` is the baseline.
    """
    percent = results.assign(accuracy=100 * results["accuracy"], sparsity=100 * results["sparsity"])
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    dense = percent[percent["method"] == "dense"]
    band = mean_interval(dense["accuracy"].tolist())
    axes.axhspan(
        band.low, band.high, color=DENSE, alpha=0.18, linewidth=0, label="dense, 95 % interval of the mean"
    )
    axes.plot(
        dense["sparsity"], dense["accuracy"], "o", color=DENSE, alpha=0.6, markersize=5, markeredgewidth=0
    )
    sparse = percent[percent["method"] != "dense"]
    for colour, (name, runs) in zip(COLOURS, sparse.groupby("method", sort=False), strict=False):
        axes.plot(
            runs["sparsity"] - 0.7,
            runs["accuracy"],
            "o",
            color=colour,
            alpha=0.5,
            markersize=5,
            markeredgewidth=0,
        )
        levels = sorted(set(runs["sparsity"]))
        means = [mean_interval(runs.loc[runs["sparsity"] == level, "accuracy"].tolist()) for level in levels]
        axes.errorbar(
            [level + 0.7 for level in levels],
            [mean.mean for mean in means],
            yerr=[mean.half_width for mean in means],
            fmt="_",
            color=colour,
            capsize=3,
            markersize=10,
            label=f"{name}: each seed, and mean with 95 % interval",
        )
    axes.set(
        xlabel="attention sparsity (% of valid keys dropped per query)",
        ylabel="test accuracy (%)",
        title=title,
        xlim=(-4, 100),
        xticks=sorted(percent["sparsity"].unique()),
    )
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=150)
