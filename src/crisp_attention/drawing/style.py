"""The style of all figures: ink and grid, and a colour and a marker for each series."""

import re
from collections.abc import Iterable
from itertools import cycle
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crisp_attention.drawing.palette import (
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

DPI = 150  # of pictures in pixels
LETTERS = 13  # of a label, in an inch
BREAKS = re.compile(r"(?<=[:+])(?=[a-z])|(?<= )(?=\w)")


class Look(NamedTuple):
    """The colour and the marker of a series."""

    colour: str
    marker: str


BASELINE = Look(QUIET, "o")
CONTROL = Look(PURPLE, "X")
# more series than colours: the colours repeat with other markers
OTHERS = list(zip((BLUE, VERMILLION, GREEN, ORANGE, SKY, INK) * 2, "osD^vPphd*<>", strict=True))


def looks(names: Iterable[str], baseline: str = "", controls: Iterable[str] = ()) -> dict[str, Look]:
    """The look of every series by its name: the baseline is grey, controls are purple, the others have colours."""
    free, found = cycle(OTHERS), {}
    for name in dict.fromkeys(names):
        given = BASELINE if name == baseline else CONTROL if name in controls else Look(*next(free))
        found[name] = given
    return found


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that arranges itself."""
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Unobtrusive axes, and a grid along `grid`."""
    axes.grid(axis=grid, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, length=3)
    ink(axes)


def ink(axes: Axes) -> None:
    """The title and the labels of the axes in the colour of text."""
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(INK)


def legend(figure: Figure, marks: Iterable[Artist], columns: int) -> None:
    """The marks' labels above the figure, in at most so many columns, fewer where they would be wider than it."""
    handles = list(marks)
    letters = [7 + len(str(each.get_label())) for each in handles]  # with the mark and what is around it

    def fits(count: int) -> bool:
        widths = [max(each) for each in np.array_split(letters, count) if len(each)]
        return sum(widths) <= LETTERS * figure.get_figwidth()

    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=next(filter(fits, range(columns, 1, -1)), 1),
        frameon=False,
        labelcolor=INK,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def parts(label: str) -> list[str]:
    """Where a long label may be broken: between words, and after the colons and pluses of a spec."""
    return BREAKS.split(label)


def wrapped(label: str, letters: int) -> str:
    """The label in lines of at most `letters`, as far as it can be broken."""
    lines = [""]
    for part in parts(label):
        if lines[-1] and len((lines[-1] + part).rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(each.rstrip() for each in lines)
