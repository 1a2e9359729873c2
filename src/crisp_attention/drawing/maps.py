"""Maps of layers and heads: one row per layer, one column per head, a value in each cell."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import MaxNLocator

from crisp_attention.drawing.palette import INK, LINE, PANEL
from crisp_attention.drawing.style import ink

SHARE, AMOUNT = "viridis", "magma"
STEPS = 40  # so that an SVG draws the scale in as many shapes; in percent, steps of 2.5 %
MOST_NUMBERS = 16  # heads up to which a cell has room for its number
MOST_TICKS = 12


def draw_map(
    axes: Axes,
    grid: pd.DataFrame,
    title: str,
    *,
    colours: str = SHARE,
    low: float | None = None,
    high: float | None = None,
    numbers: bool = False,
) -> QuadMesh:
    """Draw `grid`, layers as rows and heads as columns; a cell without a value is grey.

    low, high: the values at the ends of the scale; None for those of the grid. numbers: write the values into the
    cells where there is room.
    """
    scale = colormaps[colours].resampled(STEPS)
    cells = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    image = axes.pcolormesh(cells, vmin=low, vmax=high, cmap=scale, edgecolors=PANEL, linewidth=0.6)
    axes.set_ylim(len(grid), 0)  # the first layer at the top
    frame(axes, grid, title)
    if numbers and grid.shape[1] <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(cells.filled(np.nan)):
            if np.isfinite(value):
                # not the page's colours, which change in dark mode
                colour = "#000000" if np.asarray(image.norm(value)) > 0.6 else "#fffffe"
                place = column + 0.5, row + 0.5
                axes.text(*place, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return image


def frame(axes: Axes, grid: pd.DataFrame, title: str) -> None:
    """The title, the names of layers and heads, and no lines."""
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel="head", ylabel="layer", facecolor=LINE)
    axes.set_xticks(*_ticks(grid.columns))
    axes.set_yticks(*_ticks(grid.index))
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    ink(axes)


def draw_scale(axes: Axes | Sequence[Axes], image: QuadMesh, label: str) -> None:
    """The scale of a map, next to the axes that share it."""
    first = axes if isinstance(axes, Axes) else axes[0]
    bar = first.figure.colorbar(image, ax=axes, label=label, pad=0.02)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.ax.tick_params(length=0, labelcolor=INK)
    bar.ax.yaxis.label.set_color(INK)


def _ticks(names: pd.Index) -> tuple[list[float], list[str]]:
    every = 1 + (len(names) - 1) // MOST_TICKS
    return [place + 0.5 for place in range(0, len(names), every)], names.astype(str).tolist()[::every]
