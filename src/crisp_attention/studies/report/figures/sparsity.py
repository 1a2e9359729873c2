"""Accuracy against sparsity."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crisp_attention.drawing.palette import QUIET
from crisp_attention.drawing.style import Look, finish, legend, new_figure
from crisp_attention.studies.analysis import Analysis, Line
from crisp_attention.studies.report.figures.rows import looks_of

NEAR, APART = 1.5, 1.1  # in percent of sparsity: what would lie on each other, and how far it is moved apart


def draw_sparsity(analysis: Analysis) -> Figure:
    """Every seed a dot, means with 95 % intervals joined by a line per method, dense as a band."""
    figure = new_figure(12, 4.8)
    axes = figure.subplots()
    found = [line for line in analysis.lines if len(line.runs)]
    look = looks_of(analysis)
    places = _places(found)
    for name, shown in look.items():
        series = sorted(
            (line for line in found if line.configuration.name == name),
            key=lambda line: places[line.configuration.id],
        )
        at = [places[line.configuration.id] for line in series]
        for place, line in zip(at, series, strict=True):
            dots = [place - 0.4] * len(line.runs), 100 * line.runs["accuracy"]
            axes.plot(*dots, "o", color=shown.colour, alpha=0.4, markersize=4, markeredgewidth=0)
        if not series:
            continue
        if series[0].configuration.is_dense:
            _band(axes, series[0])
        else:
            _means(axes, at, series, shown)
    axes.set(xlabel="achieved sparsity (% of valid pairs dropped)", ylabel=f"{analysis.split} accuracy (%)")
    axes.set_xlim(-3, 100)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # intervals may reach beyond what an accuracy can be
    axes.set_xticks(range(0, 101, 10))
    finish(axes, "y")
    legend(figure, axes.get_legend_handles_labels()[0], 6)
    return figure


def _places(lines: list[Line]) -> dict[str, float]:
    """Achieved sparsity in percent by configuration; those that are nearly the same stand side by side."""
    true = {line.configuration.id: 100 * float(line.runs["achieved_sparsity"].mean()) for line in lines}
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


def _band(axes: Axes, dense: Line) -> None:
    mean = 100 * dense.runs["accuracy"].mean()
    axes.axhline(mean, color=QUIET, linewidth=1, linestyle="--", label="dense")
    if dense.accuracy is not None:
        low, high = 100 * dense.accuracy.low, 100 * dense.accuracy.high
        axes.axhspan(low, high, color=QUIET, alpha=0.16, linewidth=0)


def _means(axes: Axes, places: list[float], lines: list[Line], look: Look) -> None:
    means = [100 * line.runs["accuracy"].mean() for line in lines]
    axes.plot(places, means, color=look.colour, alpha=0.45, linewidth=1.2)
    axes.errorbar(
        places,
        means,
        yerr=[100 * line.accuracy.half_width if line.accuracy else 0 for line in lines],
        fmt=look.marker,
        color=look.colour,
        capsize=3,
        markersize=6.5,
        linewidth=1.6,
        label=lines[0].configuration.name,
    )
