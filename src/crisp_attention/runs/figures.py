"""Pictures of one run. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAINING, VALIDATION = "#0072B2", "#D55E00"
DPI = 150


def draw_learning(log: pd.DataFrame, path: Path) -> None:
    """Training and validation loss, and validation accuracy, against epochs, from the Trainer's log."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    _curve(losses, log, "loss", "training", TRAINING, marker="")
    _curve(losses, log, "eval_loss", "validation", VALIDATION, marker="o")
    losses.set(title="Cross-entropy loss", xlabel="epoch", ylabel="loss (nats per example)")
    if losses.lines:
        losses.legend(frameon=False)
    percent = log.assign(eval_accuracy=100 * log.get("eval_accuracy", pd.Series(dtype=float)))
    _curve(accuracy, percent, "eval_accuracy", "validation", VALIDATION, marker="o")
    accuracy.set(title="Validation accuracy", xlabel="epoch", ylabel="accuracy (%)")
    for axes in (losses, accuracy):
        axes.set_xlim(0, log["epoch"].max() * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=bool(log["epoch"].max() >= 2)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)


def draw_heads(table: pd.DataFrame, path: Path) -> None:
    """Achieved sparsity and kept mass of every layer and head, from `Measurement.table()`."""
    layers, heads = table["layer"].nunique(), table["head"].nunique()
    figure = Figure(figsize=(9, min(max(2.2 + 0.22 * layers, 3.0), 9.0)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("sparsity", "kept_mass"), ("Achieved sparsity", "Kept softmax mass"), strict=True
    ):
        grid = 100 * table.pivot(index="layer", columns="head", values=column)
        image = axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        mean = grid.stack().mean()  # without NaN: heads that a layer with fewer heads does not have
        axes.set(title=title if np.isnan(mean) else f"{title} (mean {mean:.1f} %)", xlabel="head")
        axes.set_xticks(*_ticks(grid.columns, heads))
        axes.set_yticks(*_ticks(grid.index, layers))
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="%", pad=0.02)
    figure.savefig(path, dpi=DPI)


def _curve(axes: Axes, log: pd.DataFrame, column: str, name: str, colour: str, marker: str) -> None:
    if column in log and not (seen := log.dropna(subset=[column])).empty:
        axes.plot(seen["epoch"], seen[column], color=colour, marker=marker, markersize=4, label=name)


def _ticks(names: pd.Index, count: int) -> tuple[list[int], list[str]]:
    every = 1 + (count - 1) // 16
    return list(range(0, count, every)), names.astype(str).tolist()[::every]
