"""One row per configuration: differences to dense, and generalisation gaps."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crisp_attention.drawing.palette import INK, QUIET
from crisp_attention.drawing.style import Look, finish, legend, looks, new_figure, wrapped
from crisp_attention.studies.analysis import Analysis, Comparison, Line
from crisp_attention.studies.statistics import Interval, seeds_interval


def draw_differences(analysis: Analysis) -> Figure:
    """Accuracy minus that of dense: each pair of seeds a dot, the mean with both its 95 % intervals."""
    dense = next(line.runs for line in analysis.lines if line.configuration.is_dense)
    compared = [(line, line.to_dense) for line in analysis.lines if line.to_dense is not None]
    figure, axes, look = _start(analysis, [line for line, _ in compared])
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    for row, (line, found) in enumerate(compared):
        shown = look[line.configuration.name]
        _row(axes, row, 100 * _paired(line.runs, dense, found), found.difference, shown)
        low, high = 100 * found.bootstrap.low, 100 * found.bootstrap.high
        axes.plot([low, high], [row + 0.27] * 2, color=shown.colour, linewidth=1.2, alpha=0.75)
    axes.set_xlabel(f"{analysis.split} accuracy minus dense (points)")
    _name_marks(figure, axes, "lower line: hierarchical bootstrap")
    return figure


def draw_gaps(analysis: Analysis) -> Figure:
    """Training minus validation accuracy: each seed a dot, the mean with its interval."""
    lines = [line for line in analysis.lines if len(line.runs)]
    figure, axes, look = _start(analysis, lines)
    for row, line in enumerate(lines):
        gaps = line.runs["gap"].dropna()
        mean = seeds_interval(gaps.tolist())
        _row(axes, row, 100 * gaps, mean, look[line.configuration.name])
    axes.set_xlabel("training minus validation accuracy (points)")
    _name_marks(figure, axes, "")
    return figure


def looks_of(analysis: Analysis) -> dict[str, Look]:
    """The look of every method by its name, the same in every figure of a report."""
    lines = [line.configuration for line in analysis.lines]
    controls = {each.name for each in lines if each.is_random}
    return looks([each.name for each in lines], analysis.study.dense.name, controls)


def _paired(runs: pd.DataFrame, dense: pd.DataFrame, found: Comparison) -> pd.Series:
    both = [frame.set_index("seed")["accuracy"].loc[list(found.seeds)] for frame in (runs, dense)]
    return both[0] - both[1]


def _start(analysis: Analysis, lines: list[Line]) -> tuple[Figure, Axes, dict[str, Look]]:
    figure = new_figure(7, 1.3 + 0.42 * max(len(lines), 2))
    axes = figure.subplots()
    axes.set_yticks(range(len(lines)), [wrapped(line.configuration.label, 26) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    finish(axes, "x")
    return figure, axes, looks_of(analysis)


def _row(axes: Axes, row: int, values: pd.Series, mean: Interval | None, look: Look) -> None:
    axes.plot(
        values,
        [row - 0.22] * len(values),
        "o",
        color=look.colour,
        alpha=0.45,
        markersize=4,
        markeredgewidth=0,
    )
    axes.errorbar(
        [values.mean()],
        [row],
        xerr=[100 * mean.half_width if mean else 0],
        fmt=look.marker,
        color=look.colour,
        capsize=3,
        markersize=6.5,
        linewidth=1.6,
    )


def _name_marks(figure: Figure, axes: Axes, also: str) -> None:
    marks = [
        Line2D([], [], color=INK, marker="o", linestyle="", alpha=0.45, markersize=4, label="each seed"),
        Line2D([], [], color=INK, marker="o", label="mean, 95 % t-interval"),
        Line2D([], [], color=INK, linewidth=1.2, alpha=0.75, label=also),
    ]
    legend(figure, marks[: 3 if also else 2], 3)
