"""Pictures of one run."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from crisp_attention.drawing.maps import draw_map, draw_scale
from crisp_attention.drawing.palette import BLUE, VERMILLION
from crisp_attention.drawing.style import DPI, finish, new_figure
from crisp_attention.runs.task import Metric


def draw_learning(log: pd.DataFrame, metric: Metric, path: Path) -> None:
    """Training and validation loss, and the metric on validation, against epochs, from the Trainer's log."""
    figure = new_figure(9, 3.6)
    losses, scores = figure.subplots(1, 2)
    _curve(losses, log, "loss", "training", BLUE, marker="")
    _curve(losses, log, "eval_loss", "validation", VERMILLION, marker="o")
    losses.set(title="Loss", xlabel="epoch", ylabel="mean loss per example")
    if losses.lines:
        losses.legend(frameon=False)
    column, unit = f"eval_{metric.name}", 100 if metric.percent else 1
    shown = log.assign(**{column: unit * log.get(column, pd.Series(dtype=float))})
    _curve(scores, shown, column, "validation", VERMILLION, marker="o")
    label = f"{metric.title} (%)" if metric.percent else metric.title
    scores.set(title=f"Validation {metric.title}", xlabel="epoch", ylabel=label)
    for axes in (losses, scores):
        axes.set_xlim(0, log["epoch"].max() * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=bool(log["epoch"].max() >= 2)))
        finish(axes, "both")
    figure.savefig(path, dpi=DPI)


def draw_heads(table: pd.DataFrame, path: Path) -> None:
    """Achieved sparsity and kept mass of every layer and head, from `Measurement.table()`."""
    figure = new_figure(9, min(max(2.2 + 0.22 * table["layer"].nunique(), 3.0), 9.0))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("sparsity", "kept_mass"), ("Achieved sparsity", "Kept softmax mass"), strict=True
    ):
        grid = 100 * table.pivot(index="layer", columns="head", values=column)
        mean = grid.stack().mean()  # without NaN: heads that a layer with fewer heads does not have
        image = draw_map(
            axes, grid, title if np.isnan(mean) else f"{title} (mean {mean:.1f} %)", low=0, high=100
        )
    panels[1].set_ylabel("")
    draw_scale(list(panels), image, "%")
    figure.savefig(path, dpi=DPI)


def _curve(axes: Axes, log: pd.DataFrame, column: str, name: str, colour: str, marker: str) -> None:
    if column in log and not (seen := log.dropna(subset=[column])).empty:
        axes.plot(seen["epoch"], seen[column], color=colour, marker=marker, markersize=4, label=name)
