"""Time against length, on two logarithmic axes, with the physical limit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from crisp_attention.bench.contender import CRISP, DENSE, REFERENCE
from crisp_attention.bench.peers import EAGER, ENTMAX, FLEX, X_TRANSFORMERS
from crisp_attention.bench.results import Attention, Results
from crisp_attention.drawing.palette import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILLION,
)
from crisp_attention.drawing.style import finish, legend, new_figure
from crisp_attention.drawing.svg import drawn, standalone

COLOURS = dict(
    zip(
        ("topk", "block_topk", "entmax", "topp", "threshold", "nofm"),
        (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE),
        strict=True,
    )
)
MARKERS = {CRISP: "o", REFERENCE: "x", EAGER: "s", X_TRANSFORMERS: "^", ENTMAX: "D", FLEX: "v"}
Style = Literal["-", "--", ":"]
OURS: Style = "-"
PEER: Style = "--"
LIMIT: Style = ":"


def draw(results: Results, folder: Path) -> None:
    """Write bench.svg and bench.png into the folder, if attention was measured."""
    if not results.attention:
        for name in ("bench.svg", "bench.png"):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        return
    figure = figure_of(results)
    (folder / "bench.svg").write_text(standalone(drawn(figure, "bench")), encoding="utf-8")
    figure.savefig(folder / "bench.png", dpi=150)


def figure_of(results: Results) -> Figure:
    """Forward passes on the left, with backward passes on the right."""
    figure = new_figure(12, 6.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, backward in zip(panels, (False, True), strict=True):
        cells = [each for each in results.attention if each.backward == backward]
        for line in _lines(cells):
            axes.add_line(line)
        _axes(axes, cells, "forward + backward" if backward else "forward")
    panels[0].set_ylabel("time divided by sequences in the batch (ms)")
    legend(figure, _marks(results.attention), 7)
    return figure


def _lines(cells: list[Attention]) -> Iterator[Line2D]:
    """Dense once, each method's contenders, and its limit; no line joins lengths of different batches."""
    for batch in dict.fromkeys(each.shape["batch"] for each in cells):
        same = [each for each in cells if each.shape["batch"] == batch]
        yield _line(
            {each.shape["length"]: _milliseconds(each, DENSE) for each in same}, DENSE, QUIET, OURS, "o"
        )
        for method in dict.fromkeys(each.name for each in same):
            own = [each for each in same if each.name == method]
            colour = COLOURS.get(method, INK)
            for name in dict.fromkeys(
                timed.name for each in own for timed in each.timed if timed.name != DENSE
            ):
                points = {each.shape["length"]: _milliseconds(each, name) for each in own}
                style = OURS if name == CRISP else PEER
                yield _line(points, name, colour, style, MARKERS[name])
            points = {each.shape["length"]: 1000 * each.limit_seconds / batch for each in own}
            yield _line(points, "limit", colour, LIMIT, "")


def _line(points: dict[int, float | None], label: str, colour: str, style: Style, marker: str) -> Line2D:
    found = sorted((length, value) for length, value in points.items() if value is not None)
    thick = style == OURS
    return Line2D(
        [length for length, _ in found],
        [value for _, value in found],
        color=colour,
        linestyle=style,
        linewidth=2.2 if thick else 1.2,
        marker=marker or ("_" if style == LIMIT and len(found) == 1 else ""),
        markersize=6 if thick else 5,
        label=label,
    )


def _milliseconds(each: Attention, name: str) -> float | None:
    return next((1000 * t.seconds.median / each.shape["batch"] for t in each.timed if t.name == name), None)


def _axes(axes: Axes, cells: list[Attention], title: str) -> None:
    lengths = sorted({each.shape["length"] for each in cells})
    axes.set(title=title, xlabel="tokens in the sequence", xscale="log", yscale="log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.autoscale_view()
    finish(axes, "both")


def _marks(cells: list[Attention]) -> Iterator[Line2D]:
    """Dense, the colour of each method, the marker of each contender, the limit."""
    yield _line({0: 0.0}, DENSE, QUIET, OURS, "o")
    for method in dict.fromkeys(each.name for each in cells):
        yield _line({0: 0.0}, f"{CRISP}, {method}", COLOURS.get(method, INK), OURS, MARKERS[CRISP])
    timed = {timed.name for each in cells for timed in each.timed}
    for name, marker in MARKERS.items():
        if name in timed and name != CRISP:
            yield _line({0: 0.0}, name, INK, PEER, marker)
    yield _line({}, "limit of arithmetic", INK, LIMIT, "")
