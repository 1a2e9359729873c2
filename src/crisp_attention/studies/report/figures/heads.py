"""What each layer and head did."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from crisp_attention.drawing.maps import draw_map, draw_scale
from crisp_attention.drawing.style import new_figure


def draw_heads(measurements: Sequence[pd.DataFrame]) -> Figure:
    """Achieved sparsity and kept mass of every layer and head, means over the runs, in percent."""
    means = 100 * pd.concat(measurements).groupby(["layer", "head"])[["sparsity", "kept_mass"]].mean()
    layers = means.index.get_level_values("layer").nunique()
    figure = new_figure(12, min(max(1.3 + 0.27 * layers, 2.4), 10))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(panels, means.columns, ("achieved sparsity", "kept mass"), strict=True):
        grid = means[column].unstack("head")
        image = draw_map(axes, grid, f"{title} (%)", low=0, high=100, numbers=True)
    panels[1].set_ylabel("")
    draw_scale(list(panels), image, "")
    return figure
