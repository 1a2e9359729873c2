"""The pictures of a study: a score against sparsity, a line per variant along its best settings."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crisp_attention.drawing.palette import INK, QUIET
from crisp_attention.drawing.style import finish, legend, looks, new_figure
from crisp_attention.drawing.svg import drawn
from crisp_attention.sparsefinder import fronts
from crisp_attention.sparsefinder.findings import Axis, Results, axes_of
from crisp_attention.sparsefinder.quality import FULL
from crisp_attention.studies.report.figures import Picture

CAPTION = (
    "Dots: settings, means over layers, heads and seeds. Lines: the best settings, those that no other one of the "
    "variant beats in both. Solid: Sparsefinder; dashed: what it is compared with. Dotted: the sparsity of entmax."
)


def pictures(results: Results) -> list[Picture]:
    """One for each score."""
    return [
        Picture(
            axis.name,
            f"{axis.title[0].upper()}{axis.title[1:]} against sparsity",
            CAPTION,
            drawn(draw(results, axis), axis.name),
        )
        for axis in axes_of(results)
    ]


def draw(results: Results, axis: Axis) -> Figure:
    """Every setting a dot, and each variant's front a line."""
    figure = new_figure(12, 6)
    axes = figure.subplots()
    variants = list(dict.fromkeys(results.table["variant"]))
    scale = 100 if axis.percent else 1
    marks = []
    for variant, look in looks(variants).items():
        own = axis.points[axis.points["variant"] == variant]
        if own.empty:
            continue
        ours = variant in results.learned
        axes.plot(
            100 * own["sparsity"],
            scale * own[axis.name],
            look.marker,
            color=look.colour,
            alpha=0.3,
            markersize=4,
            markeredgewidth=0,
        )
        edge = fronts.front(own, axis.name, axis.higher)
        style: dict[str, Any] = {
            "color": look.colour,
            "linestyle": "-" if ours else "--",
            "linewidth": 2.2 if ours else 1.3,
            "marker": look.marker,
            "markersize": 6 if ours else 5,
        }
        axes.plot(100 * edge["sparsity"], scale * edge[axis.name], **style)
        marks.append(Line2D([], [], label=variant, **style))
    axes.axvline(100 * results.table["gold_sparsity"].mean(), color=INK, linewidth=1, linestyle=":")
    if axis.name == "quality":
        full = results.outcome.loc[results.outcome["variant"] == FULL, "quality"].iloc[0]
        axes.axhline(scale * full, color=QUIET, linewidth=1, linestyle="--")
        marks.append(Line2D([], [], color=QUIET, linewidth=1, linestyle="--", label="entmax of all pairs"))
    axes.set(xlabel="sparsity (% of valid pairs not attended)", xlim=(-1, 101))
    axes.set_ylabel(f"{axis.title} (%)" if axis.percent else axis.title)
    axes.set_xticks(range(0, 101, 10))
    finish(axes, "both")
    legend(figure, marks, 6)
    return figure
