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
from crisp_attention.drawing.style import Look, finish, legend, looks, new_figure, wrapped
from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.analysis import Analysis, Comparison, Line
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.statistics import Interval, seeds_interval

NEAR, APART = 1.5, 1.1  # in percent of sparsity: what would overlap, and how far it is moved apart


def draw_sparsity(analysis: Analysis) -> Figure:
    """Every seed a dot, means with 95 % intervals joined by a line per method, dense as a band."""
    figure, unit = new_figure(12, 4.8), Unit(analysis.metric)
    axes = figure.subplots()
    found = [line for line in analysis.lines if len(line.runs)]
    places = _places(found)
    for name, look in _looks(analysis).items():
        series = sorted(
            (line for line in found if line.configuration.treatment.series == name),
            key=lambda line: places[line.configuration.id],
        )
        if not series:
            continue
        at = [places[line.configuration.id] for line in series]
        for place, line in zip(at, series, strict=True):
            dots = [place - 0.4] * len(line.runs), unit.scale * line.runs["score"]
            axes.plot(*dots, "o", color=look.colour, alpha=0.4, markersize=4, markeredgewidth=0)
        if series[0].configuration.is_dense:
            _band(axes, series[0], unit)
        else:
            _means(axes, at, series, look, unit)
    axes.set(xlabel="achieved sparsity (% dropped)", ylabel=f"{analysis.split} {unit.title}")
    axes.set_xlim(-3, 100)
    if unit.metric.percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))  # intervals may reach beyond what a share can be
    axes.set_xticks(range(0, 101, 10))
    finish(axes, "y")
    legend(figure, axes.get_legend_handles_labels()[0], 6)
    return figure


def draw_differences(analysis: Analysis) -> Figure:
    """The score minus that of dense: each pair of seeds a dot, the mean with both its 95 % intervals."""
    unit = Unit(analysis.metric)
    dense = next(line.runs for line in analysis.lines if line.configuration.is_dense)
    compared = [(line, line.to_dense) for line in analysis.lines if line.to_dense is not None]
    figure, axes, look = _rows(analysis, [line for line, _ in compared])
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    for row, (line, found) in enumerate(compared):
        shown = look[line.configuration.treatment.series]
        _row(axes, row, _paired(line.runs, dense, found), found.difference, shown, unit)
        ends = [unit.scale * found.bootstrap.low, unit.scale * found.bootstrap.high]
        axes.plot(ends, [row + 0.27] * 2, color=shown.colour, linewidth=1.2, alpha=0.75)
    axes.set_xlabel(f"{analysis.split} {unit.metric.title} minus dense{_in(unit)}")
    _name_marks(figure, "lower line: hierarchical bootstrap")
    return figure


def draw_gaps(analysis: Analysis) -> Figure:
    """The score on training less that on validation examples: each seed a dot, the mean with its interval."""
    unit = Unit(analysis.metric)
    lines = [line for line in analysis.lines if len(line.runs)]
    figure, axes, look = _rows(analysis, lines)
    for row, line in enumerate(lines):
        gaps = line.runs["gap"].dropna()
        mean = seeds_interval(gaps.tolist())
        _row(axes, row, gaps, mean, look[line.configuration.treatment.series], unit)
    axes.set_xlabel(f"training minus validation {unit.metric.title}{_in(unit)}")
    _name_marks(figure, "")
    return figure


def _looks(analysis: Analysis) -> dict[str, Look]:
    """The look of every series, the same in every figure of a report."""
    lines = [line.configuration for line in analysis.lines]
    controls = {each.treatment.series for each in lines if each.is_control}
    return looks([each.treatment.series for each in lines], analysis.study.dense.treatment.series, controls)


def _in(unit: Unit) -> str:
    return " (points)" if unit.metric.percent else ""


def _places(lines: list[Line]) -> dict[str, float]:
    """Achieved sparsity in percent by configuration; those that are nearly the same stand side by side."""
    true = {line.configuration.id: 100 * line.mean("achieved_sparsity") for line in lines}
    groups: list[list[str]] = []
    for each in sorted(true, key=lambda name: true[name]):
        if groups and true[each] - true[groups[-1][-1]] < NEAR:
            groups[-1].append(each)
        else:
            groups.append([each])
    return {
        each: sum(true[other] for other in group) / len(group) + APART * (number - (len(group) - 1) / 2)
        for group in groups
        for number, each in enumerate(group)
    }


def _band(axes: Axes, dense: Line, unit: Unit) -> None:
    axes.axhline(unit.scale * dense.mean("score"), color=QUIET, linewidth=1, linestyle="--", label="dense")
    if dense.score is not None:
        low, high = unit.scale * dense.score.low, unit.scale * dense.score.high
        axes.axhspan(low, high, color=QUIET, alpha=0.16, linewidth=0)


def _means(axes: Axes, places: list[float], lines: list[Line], look: Look, unit: Unit) -> None:
    means = [unit.scale * line.mean("score") for line in lines]
    axes.plot(places, means, color=look.colour, alpha=0.45, linewidth=1.2)
    axes.errorbar(
        places,
        means,
        yerr=[unit.scale * line.score.half_width if line.score else 0 for line in lines],
        fmt=look.marker,
        color=look.colour,
        capsize=3,
        markersize=6.5,
        linewidth=1.6,
        label=lines[0].configuration.treatment.series,
    )


def _paired(runs: pd.DataFrame, dense: pd.DataFrame, found: Comparison) -> pd.Series:
    both = [frame.set_index("seed")["score"].loc[list(found.seeds)] for frame in (runs, dense)]
    return both[0] - both[1]


def _rows(analysis: Analysis, lines: list[Line]) -> tuple[Figure, Axes, dict[str, Look]]:
    """A figure with a row per line."""
    figure = new_figure(7, 1.3 + 0.42 * max(len(lines), 2))
    axes = figure.subplots()
    axes.set_yticks(range(len(lines)), [wrapped(line.configuration.label, 26) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    finish(axes, "x")
    return figure, axes, _looks(analysis)


def _row(axes: Axes, row: int, values: pd.Series, mean: Interval | None, look: Look, unit: Unit) -> None:
    shown = unit.scale * values
    axes.plot(
        shown, [row - 0.22] * len(shown), "o", color=look.colour, alpha=0.45, markersize=4, markeredgewidth=0
    )
    axes.errorbar(
        [shown.mean()],
        [row],
        xerr=[unit.scale * mean.half_width if mean else 0],
        fmt=look.marker,
        color=look.colour,
        capsize=3,
        markersize=6.5,
        linewidth=1.6,
    )


def _name_marks(figure: Figure, also: str) -> None:
    marks = [
        Line2D([], [], color=INK, marker="o", linestyle="", alpha=0.45, markersize=4, label="each seed"),
        Line2D([], [], color=INK, marker="o", label="mean, 95 % t-interval"),
        Line2D([], [], color=INK, linewidth=1.2, alpha=0.75, label=also),
    ]
    legend(figure, marks[: 3 if also else 2], 3)


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
