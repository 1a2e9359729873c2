"""How all figures look: ink and grid, and a colour and a marker for each method."""

import re
from collections.abc import Iterable
from itertools import cycle
from typing import Literal, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crisp_attention.studies.report.figures.palette import (
    BLUE,
    GREEN,
    INK,
    LINE,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILLION,
)
from crisp_attention.studies.study import Configuration

BREAKS = re.compile(r"(?<=[:+])")


class Look(NamedTuple):
    """The colour and the marker of a method, the same in every figure."""

    colour: str
    marker: str


DENSE = Look(QUIET, "o")
RANDOM = Look(PURPLE, "X")
# more methods than colours: the colours come again with other markers
OTHERS = list(zip((BLUE, VERMILLION, GREEN, ORANGE, SKY, INK) * 2, "osD^vPphd*<>", strict=True))


def looks(configurations: Iterable[Configuration]) -> dict[str, Look]:
    """The look of every method, by its name."""
    free, found = cycle(OTHERS), {}
    for each in configurations:
        if each.name not in found:
            given = DENSE if each.is_dense else RANDOM if each.is_random else Look(*next(free))
            found[each.name] = given
    return found


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that arranges itself."""
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Quiet axes, and a grid along `grid` (x, y or both)."""
    axes.grid(axis=grid, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, length=3)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(INK)


def legend(figure: Figure, marks: Iterable[Artist], columns: int) -> None:
    """The marks' labels above the figure."""
    figure.legend(
        handles=list(marks),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def parts(label: str) -> list[str]:
    """Where a long label may be broken: after the colons and pluses of a spec."""
    return BREAKS.split(label)


def wrapped(label: str, letters: int) -> str:
    """The label in lines of at most so many letters, as far as it can be broken."""
    lines = [""]
    for part in parts(label):
        if lines[-1] and len(lines[-1] + part) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
