"""Scores: against sparsity, as differences from dense, and the generalisation gap."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crisp_attention.drawing.palette import INK, QUIET
from crisp_attention.drawing.style import Look, finish, legend, looks, new_figure, wrapped
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
