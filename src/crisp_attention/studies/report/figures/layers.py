"""What each layer of a sparse model kept: the heads of its attention, or how many of its weights are zero."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from crisp_attention.drawing.maps import draw_map, draw_scale
from crisp_attention.drawing.palette import INK, SKY
from crisp_attention.drawing.style import finish, new_figure
from crisp_attention.drawing.svg import drawn
from crisp_attention.runs.treatment import ModelTreatment
from crisp_attention.studies.analysis import Analysis
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.report.figures.pictures import Picture


def draw_heads(measurements: Sequence[pd.DataFrame]) -> Figure:
    """Achieved sparsity and kept mass of every layer and head, means over the runs, in percent."""
    titles = {"sparsity": "achieved sparsity (%)", "kept_mass": "kept mass (%)"}
    means = 100 * pd.concat(measurements).groupby(["layer", "head"])[list(titles)].mean()
    layers = means.index.get_level_values("layer").nunique()
    figure = new_figure(12, min(max(1.3 + 0.27 * layers, 2.4), 10))
    panels = list(figure.subplots(1, len(titles), sharey=True))
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        image = draw_map(axes, means[column].unstack("head"), title, low=0, high=100, numbers=True)
    panels[1].set_ylabel("")
    draw_scale(panels, image, "")
    return figure


def draw_zeros(measurements: Sequence[pd.DataFrame], words: str) -> Figure:
    """The share of zeros in every layer, by its name: a bar for the mean over the runs, a dot for each of them."""
    table = pd.concat(measurements)
    means = 100 * table.groupby("name", sort=False)["sparsity"].mean()
    figure = new_figure(12, 0.9 + 0.22 * len(means))
    axes = figure.subplots()
    places = {name: place for place, name in enumerate(means.index)}
    axes.barh(list(places.values()), means, height=0.7, color=SKY)
    axes.plot(100 * table["sparsity"], table["name"].map(places), "o", color=INK, alpha=0.5, markersize=3)
    for place, mean in enumerate(means):
        axes.text(101.5, place, f"{mean:.0f}", va="center", color=INK, fontsize=8)
    axes.set_yticks(list(places.values()), list(places))
    axes.set(xlim=(0, 105), ylim=(len(places) - 0.4, -0.6), xlabel=f"share of zero {words} (%)")
    axes.set_xticks(range(0, 101, 20))
    finish(axes, "x")
    axes.tick_params(axis="y", length=0)
    return figure


def head_pictures(analysis: Analysis) -> list[Picture]:
    """For each configuration with sparse attention that ran, what its layers and heads kept."""
    found = []
    for each, runs in _measured(analysis):
        if not isinstance(each.treatment, ModelTreatment):
            name, caption = f"heads-{each.id}", f"Mean over {_seeds(runs)}, measured in evaluation."
            found.append(Picture(name, each.label, caption, drawn(draw_heads(runs), name)))
    return found


def layer_pictures(analysis: Analysis) -> list[Picture]:
    """For each configuration that ran and does something to the model itself, the zeros of its layers."""
    found = []
    for each, runs in _measured(analysis):
        if isinstance(each.treatment, ModelTreatment):
            name, caption = f"layers-{each.id}", f"Bars and numbers: mean over {_seeds(runs)}."
            caption += " Dots: single seeds." if len(runs) > 1 else ""
            drawing = drawn(draw_zeros(runs, each.treatment.words), name)
            found.append(Picture(name, each.label, caption, drawing))
    return found


def _measured(analysis: Analysis) -> Iterator[tuple[Configuration, tuple[pd.DataFrame, ...]]]:
    for line in analysis.lines:
        if not line.configuration.is_dense and line.measurements:
            yield line.configuration, line.measurements


def _seeds(runs: Sequence[pd.DataFrame]) -> str:
    return f"{len(runs)} seed{'s' * (len(runs) > 1)}"
