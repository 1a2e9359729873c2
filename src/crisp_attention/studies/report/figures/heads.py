"""What each layer and head did."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crisp_attention.studies.report.figures.palette import INK, PANEL
from crisp_attention.studies.report.figures.style import new_figure
from crisp_attention.studies.study import FinishedRun

MAP = colormaps["viridis"].resampled(40)  # steps of 2.5 %, so that the scale is drawn in as many shapes
MOST_NUMBERS = 16  # heads up to which a cell has room for its number


def draw_heads(runs: list[FinishedRun]) -> Figure:
    """Achieved sparsity and kept mass of every layer and head, means over the runs, in percent."""
    table = pd.concat([run.measurements() for run in runs])
    means = 100 * table.groupby(["layer", "head"])[["sparsity", "kept_mass"]].mean()
    layers = means.index.get_level_values("layer").nunique()
    figure = new_figure(12, min(max(1.3 + 0.27 * layers, 2.4), 10))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(panels, means.columns, ("achieved sparsity", "kept mass"), strict=True):
        grid = means[column].unstack("head")
        image = axes.pcolormesh(grid.to_numpy(), vmin=0, vmax=100, cmap=MAP, edgecolors=PANEL, linewidth=0.6)
        axes.set_title(f"{title} (%)", color=INK, fontsize="medium")
        axes.set_xlabel("head", color=INK)
        axes.set_xticks(*_ticks(grid.columns))
        axes.set_yticks(*_ticks(grid.index))
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        if grid.shape[1] <= MOST_NUMBERS:
            _numbers(axes, grid)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("layer", color=INK)
    scale = figure.colorbar(image, ax=panels, pad=0.02)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, labelcolor=INK)
    return figure


def _ticks(names: pd.Index) -> tuple[list[float], list[str]]:
    every = 1 + (len(names) - 1) // 16
    return [place + 0.5 for place in range(0, len(names), every)], names.astype(str).tolist()[::every]


def _numbers(axes: Axes, grid: pd.DataFrame) -> None:
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        if np.isfinite(value):  # a layer with fewer heads has none there
            colour = "#000000" if value > 60 else "#fffffe"  # not the page's colours: they stay in the dark
            axes.text(
                column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
