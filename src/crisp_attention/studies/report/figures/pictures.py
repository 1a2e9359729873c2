"""The figures of a report: its scores, what the runs logged while they trained, and what each layer and head kept."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crisp_attention.drawing.maps import draw_map, draw_scale
from crisp_attention.drawing.palette import BLUE, INK, QUIET, VERMILLION
from crisp_attention.drawing.style import finish, legend, new_figure, wrapped
from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.analysis import Analysis
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.report.figures.scores import draw_differences, draw_gaps, draw_sparsity

COLUMNS = 4


class Curve(NamedTuple):
    """A column of the Trainer's log, and how it is drawn."""

    column: str
    label: str
    colour: str
    scale: float = 1.0


LOSSES = (Curve("loss", "training", BLUE), Curve("eval_loss", "validation", VERMILLION))


def learning(unit: Unit) -> tuple[Curve, ...]:
    """The main metric on validation."""
    return (Curve(f"eval_{unit.metric.name}", "validation", VERMILLION, unit.scale),)


def draw_curves(analysis: Analysis, curves: tuple[Curve, ...], ylabel: str) -> Figure:
    """Thin lines for the seeds, a thick one for their mean, and dense's mean in grey in every panel."""
    found = [(line.configuration, list(line.histories)) for line in analysis.lines if line.histories]
    rows = -(-len(found) // COLUMNS) or 1
    figure = new_figure(12, 0.9 + 2.1 * rows)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    dense = [log for each, logs in found if each.is_dense for log in logs]
    for axes, (configuration, logs) in zip(panels, found, strict=False):
        for curve in curves:
            if dense and not configuration.is_dense:
                _mean(axes, dense, curve, QUIET, "--", 1.0)
            for log in logs if len(logs) > 1 else []:
                seen = log.reindex(columns=["epoch", curve.column]).dropna()
                axes.plot(
                    seen["epoch"],
                    curve.scale * seen[curve.column],
                    color=curve.colour,
                    alpha=0.35,
                    linewidth=0.7,
                )
            _mean(axes, logs, curve, curve.colour, "-", 1.8)
        axes.set_title(wrapped(configuration.label, 24), fontsize="medium")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        finish(axes, "both")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", color=INK, fontsize="medium")
    figure.supylabel(ylabel, color=INK, fontsize="medium")
    marks = [Line2D([], [], color=each.colour, linewidth=1.8, label=each.label) for each in curves]
    legend(figure, [*marks, Line2D([], [], color=QUIET, linestyle="--", linewidth=1, label="dense, mean")], 4)
    return figure


def _mean(axes: Axes, logs: list[pd.DataFrame], curve: Curve, colour: str, style: str, width: float) -> None:
    seen = pd.concat([log.reindex(columns=["epoch", curve.column]) for log in logs]).dropna()
    mean = seen.groupby("epoch")[curve.column].mean()
    marker = "o" if np.size(mean) == 1 else ""  # a line of one point shows nothing
    axes.plot(
        mean.index, curve.scale * mean, style, marker=marker, markersize=4, color=colour, linewidth=width
    )


def draw_heads(measurements: Sequence[pd.DataFrame]) -> Figure:
    """Achieved sparsity and kept mass of every layer and head, means over the runs, in percent.

    What has no heads, such as the sparsity of weights, is one column; without a kept mass there is one panel.
    """
    table = pd.concat(measurements)
    table = table if "head" in table else table.assign(head=0)
    titles = {"sparsity": "achieved sparsity", "kept_mass": "kept mass"}
    columns = [column for column in titles if column in table]
    means = 100 * table.groupby(["layer", "head"])[columns].mean()
    layers = means.index.get_level_values("layer").nunique()
    figure = new_figure(12, min(max(1.3 + 0.27 * layers, 2.4), 10))
    panels = list(figure.subplots(1, len(columns), sharey=True, squeeze=False).ravel())
    for axes, column in zip(panels, columns, strict=True):
        grid = means[column].unstack("head")
        image = draw_map(axes, grid, f"{titles[column]} (%)", low=0, high=100, numbers=True)
    for axes in panels[1:]:
        axes.set_ylabel("")
    draw_scale(panels, image, "")
    return figure


class Picture(NamedTuple):
    """A figure with its file name, its title, and what to see in it; a wide one needs the whole page."""

    name: str
    title: str
    caption: str
    svg: Element
    wide: bool = True


def main_pictures(analysis: Analysis) -> list[Picture]:
    """Scores and generalisation; without differences where nothing is compared with dense."""
    metric = analysis.metric
    title = f"{metric.title[0].upper()}{metric.title[1:]}"
    score = Picture(
        metric.name,
        f"{title} against sparsity",
        "Dots: single seeds. Marks: means with 95 % t-intervals over seeds. Dashed line and band: dense. "
        "Methods at one sparsity are drawn next to each other.",
        drawn(draw_sparsity(analysis), metric.name),
    )
    gap = Picture(
        "gap",
        "Generalisation gap",
        f"Near zero: as good on new examples as on training examples ({metric.title}).",
        drawn(draw_gaps(analysis), "gap"),
        wide=False,
    )
    if not any(line.to_dense for line in analysis.lines):
        return [score, gap]
    difference = Picture(
        "difference",
        "Difference from dense",
        "Paired by seed. A configuration differs from dense only if both its intervals leave out the dashed "
        "zero; the verdicts correct for the number of comparisons as well.",
        drawn(draw_differences(analysis), "difference"),
        wide=False,
    )
    return [score, difference, gap]


def curve_pictures(analysis: Analysis) -> list[Picture]:
    """What the runs logged while they trained."""
    seeds = "Thin lines: single seeds; thick: their mean; dashed grey: the mean of dense."
    loss = drawn(draw_curves(analysis, LOSSES, "loss"), "loss")
    unit = Unit(analysis.metric)
    scores = drawn(draw_curves(analysis, learning(unit), unit.title), "learning")
    return [
        Picture("loss", "Loss while training", seeds, loss),
        Picture("learning", f"Validation {unit.metric.title} while training", seeds, scores),
    ]


def head_pictures(analysis: Analysis) -> list[Picture]:
    """For each sparse configuration that ran, what its layers and heads kept."""
    pictures = []
    for line in analysis.lines:
        each, runs = line.configuration, line.measurements
        if not each.is_dense and runs:
            name, seeds = f"heads-{each.id}", "seed" if len(runs) == 1 else "seeds"
            caption = f"Mean over {len(runs)} {seeds}, measured in evaluation."
            pictures.append(Picture(name, each.label, caption, drawn(draw_heads(runs), name)))
    return pictures
