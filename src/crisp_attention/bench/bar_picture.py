"""The picture of the bars: how much of each was used, a point for each, on a logarithmic axis."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from crisp_attention.bench.summary import FORWARD, Judged
from crisp_attention.drawing.palette import GREEN, INK, QUIET, VERMILLION
from crisp_attention.drawing.style import finish, legend, new_figure

ROW = 0.26  # inches
LEAST = 0.01  # of a bar, to which less is moved: what hooks cost may be measured as less than nothing
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def draw_bars(found: Sequence[Judged]) -> Figure:
    """A row for each case, the worst at the top: circles for forward passes, diamonds for all else."""
    known = [(each, max(LEAST, each.share)) for each in found if each.share is not None]
    rows = {case: place for place, case in enumerate(dict.fromkeys(each.case for each, _ in known))}
    figure = new_figure(7.6, 1.4 + ROW * len(rows))
    axes = figure.subplots()
    axes.axvline(1, color=INK, linewidth=1.2)
    for each, share in known:
        axes.add_line(_mark(each.of == FORWARD, each.word == "missed", (share, rows[each.case])))
    shares = [share for _, share in known]
    limits = min(0.2, *shares) / 1.3, max(2.0, *shares) * 1.3
    axes.set(xscale="log", xlim=limits, ylim=(len(rows) - 0.4, -0.6))
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set_xlabel("measured, as a multiple of the bar")
    finish(axes, "both")
    axes.tick_params(axis="y", length=0)
    legend(figure, _marks(), 2)
    return figure


def _mark(forward: bool, missed: bool, place: tuple[float, float], label: str = "") -> Line2D:
    colour = VERMILLION if missed else GREEN
    marker = "o" if forward else "D"
    at = ([place[0]], [place[1]])
    return Line2D(*at, linestyle="", marker=marker, markersize=6, color=colour, label=label)


def _marks() -> list[Line2D]:
    nowhere = (float("nan"), float("nan"))
    return [
        _mark(True, False, nowhere, "holds"),
        _mark(True, True, nowhere, "missed"),
        Line2D([], [], linestyle="", marker="o", color=QUIET, label="forward"),
        Line2D([], [], linestyle="", marker="D", color=QUIET, label="with the backward pass, and all else"),
    ]
