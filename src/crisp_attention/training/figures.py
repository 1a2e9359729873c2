"""Pictures of one run. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_learning(history: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss, and validation accuracy, against epochs."""
    log = pd.DataFrame(history)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for column, name, colour in (("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)):
        if column in log:
            seen = log.dropna(subset=[column])
            losses.plot(
                seen["epoch"], seen[column], color=colour, marker="." if column == "eval_loss" else None
            )
            losses.annotate(
                name, (seen["epoch"].iloc[-1], seen[column].iloc[-1]), color=colour, ha="right", va="bottom"
            )
    losses.set(xlabel="epoch", ylabel="cross-entropy loss (nats)", title="Loss")
    if "eval_accuracy" in log:
        seen = log.dropna(subset=["eval_accuracy"])
        accuracy.plot(seen["epoch"], 100 * seen["eval_accuracy"], color=ORANGE, marker=".")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Accuracy")
    _save(figure, path)


def draw_heads(table: pd.DataFrame, path: Path) -> None:
    """Achieved sparsity and kept mass of every layer and head, from `Measurement.table()`."""
    layers, heads = table["layer"].nunique(), table["head"].nunique()
    figure = Figure(figsize=(2 + 0.8 * heads, 1.6 + 0.5 * layers), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, column, title in (
        (panels[0], "sparsity", "Achieved sparsity (%)"),
        (panels[1], "kept_mass", "Kept mass (%)"),
    ):
        grid = table.pivot(index="layer", columns="head", values=column) * 100
        image = axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set(title=title, xlabel="head", ylabel="layer")
        axes.set_xticks(range(len(grid.columns)), grid.columns)
        axes.set_yticks(range(len(grid.index)), grid.index)
        figure.colorbar(image, ax=axes)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
