"""The figures of a report: its scores, and what the runs logged while they trained."""

from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crisp_attention.drawing.palette import BLUE, INK, PANEL, QUIET, VERMILLION
from crisp_attention.drawing.style import Look, finish, legend, looks, new_figure, wrapped
from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.analysis import Analysis, Comparison, Line
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.statistics import Interval, seeds_interval

NEAR, APART = 1.5, 1.1  # in percent of sparsity: what would overlap, and how far it is moved apart
MARKS, LINE = 0.36, 0.19  # inches of a row: its marks, and each line of its label above them
ROW_WIDTH = 6  # inches of a figure of rows


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
    axes.set(xlabel="achieved sparsity (% dropped)", ylabel=wrapped(f"{analysis.split} {unit.title}", 40))
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
    figure, axes, places = _rows([line for line, _ in compared])
    look = _looks(analysis)
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    for row, (line, found) in zip(places, compared, strict=True):
        shown = look[line.configuration.treatment.series]
        _row(axes, row, _paired(line.runs, dense, found), found.difference, shown, unit)
        ends = [unit.scale * found.bootstrap.low, unit.scale * found.bootstrap.high]
        axes.plot(ends, [row + 0.11] * 2, color=shown.colour, linewidth=1.2, alpha=0.75)
    axes.set_xlabel(_across(f"{analysis.split} {unit.metric.title} minus dense{_in(unit)}"))
    _name_marks(figure, "lower line: bootstrap")
    return figure


def draw_gaps(analysis: Analysis) -> Figure:
    """The score on training less that on validation examples: each seed a dot, the mean with its interval."""
    unit = Unit(analysis.metric)
    lines = [line for line in analysis.lines if len(line.runs)]
    figure, axes, places = _rows(lines)
    look = _looks(analysis)
    for row, line in zip(places, lines, strict=True):
        gaps = line.runs["gap"].dropna()
        mean = seeds_interval(gaps.tolist())
        _row(axes, row, gaps, mean, look[line.configuration.treatment.series], unit)
    axes.set_xlabel(_across(f"training minus validation {unit.metric.title}{_in(unit)}"))
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
        label=_series_label(lines),
    )


def _series_label(lines: list[Line]) -> str:
    """What the tables call it, without the sparsity where the series has several."""
    first = lines[0].configuration
    return first.label if len(lines) == 1 else first.treatment.series_label


def _paired(runs: pd.DataFrame, dense: pd.DataFrame, found: Comparison) -> pd.Series:
    both = [frame.set_index("seed")["score"].loc[list(found.seeds)] for frame in (runs, dense)]
    return both[0] - both[1]


def _rows(lines: list[Line]) -> tuple[Figure, Axes, list[float]]:
    """A figure with a row per line, its label above its marks, and where the marks are, in inches from the top."""
    labels = [_across(line.configuration.label) for line in lines]
    heights = [LINE * (1 + label.count("\n")) + MARKS for label in labels]
    bottoms = np.cumsum(heights).tolist()
    figure = new_figure(ROW_WIDTH, 1.2 + max(sum(heights), 2 * (LINE + MARKS)))
    axes = figure.subplots()
    for label, bottom in zip(labels, bottoms, strict=True):
        axes.text(
            *(0, bottom - MARKS, label),
            transform=axes.get_yaxis_transform(),
            va="bottom",
            color=INK,
            bbox={"facecolor": PANEL, "edgecolor": "none", "pad": 1},
        )
    axes.set_ylim(bottoms[-1] if bottoms else 1, 0)
    axes.set_yticks([])
    finish(axes, "x")
    axes.spines["left"].set_visible(False)
    return figure, axes, [bottom - MARKS / 2 for bottom in bottoms]


def _across(label: str) -> str:
    return wrapped(label, 11 * ROW_WIDTH)


def _row(axes: Axes, row: float, values: pd.Series, mean: Interval | None, look: Look, unit: Unit) -> None:
    shown = unit.scale * values
    axes.plot(
        shown, [row - 0.09] * len(shown), "o", color=look.colour, alpha=0.45, markersize=4, markeredgewidth=0
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
    titles = [wrapped(each.label, 30) for each, _ in found]
    high = max((title.count("\n") for title in titles), default=0)
    figure = new_figure(12, 0.9 + (2.1 + LINE * high) * rows)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    dense = [log for each, logs in found if each.is_dense for log in logs]
    for axes, title, (configuration, logs) in zip(panels, titles, found, strict=False):
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
        axes.set_title(title, fontsize="medium")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        finish(axes, "both")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", color=INK, fontsize="medium")
    figure.supylabel(wrapped(ylabel, 20 * rows), color=INK, fontsize="medium")
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
