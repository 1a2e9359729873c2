"""The pictures of a comparison: loss against steps, final losses by seed, and generated digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crisp_attention.diffusion.findings import Line, lines
from crisp_attention.diffusion.runs import ORDER, Run
from crisp_attention.diffusion.variants import DENSE
from crisp_attention.drawing.palette import INK, QUIET
from crisp_attention.drawing.style import Look, finish, ink, legend, looks, new_figure, wrapped
from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.report.figures import Picture

# lines tell apart what they are fine-tuned by, and what of it
DASHES: dict[str, dict[str, Any]] = {
    "": {"linestyle": "-"},
    "distillation": {"linestyle": "--"},
    "projection alone": {"linestyle": ":"},
    "distillation, projection alone": {"linestyle": "-."},
}


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """Those of the report."""
    look = looks_of(runs)
    return [
        Picture(
            "digits",
            "Generated digits",
            "Of the first seed: the digits 0 to 9, twice, from the same noise for every variant.",
            drawn(draw_digits(runs), "digits"),
        ),
        Picture(
            "steps",
            "Denoising loss against steps of fine-tuning",
            "On held-out images, means over seeds, a panel for each sparsity; lower is better. Where a line begins, "
            "attention was just replaced.",
            drawn(draw_steps(runs, look), "steps"),
        ),
        Picture(
            "losses",
            "Final loss relative to dense attention",
            "A dot for each seed, a bar for their mean: how much higher the loss is than that of dense attention "
            "after the same steps.",
            drawn(draw_losses(runs, look), "losses"),
        ),
    ]


def looks_of(runs: Sequence[Run]) -> dict[str, Look]:
    """How each attention is drawn, whatever its sparsity."""
    return looks([each for each in ORDER if any(run.attention == each for run in runs)], baseline=DENSE)


def _way(line: Line) -> str:
    """The loss and what is trained, as far as they are not the usual ones."""
    return line.label.partition(", ")[2]


def draw_digits(runs: Sequence[Run]) -> Figure:
    """A row of digits for every variant."""
    first = min(run.seed for run in runs)
    rows = [run for run in runs if run.seed == first]
    figure = new_figure(9, 0.42 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for each, run in zip(axes, rows, strict=True):
        framed = np.pad(run.images().numpy(), ((0, 0), (0, 0), (0, 1)), constant_values=128)
        row = np.concatenate(list(framed), axis=1)
        each.imshow(row, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        # of blanks there is more room: pages have wider letters than those that the figure was laid out for
        each.set_yticks([3.5], [f"    {wrapped(run.label, 22)}"])
        each.set_xticks([])
        each.tick_params(length=0, labelcolor=INK, labelsize=8)
        each.spines[:].set_visible(False)
    return figure


def draw_steps(runs: Sequence[Run], look: dict[str, Look]) -> Figure:
    """A panel for every sparsity, with a line for every variant; those without a sparsity are in all of them."""
    found = lines(runs)
    sparsities = sorted({line.first.sparsity for line in found if line.first.sparsity is not None})
    figure = new_figure(10, 4.6)
    panels = figure.subplots(1, len(sparsities), sharey=True, squeeze=False)[0]
    for axes, sparsity in zip(panels, sparsities, strict=True):
        for line in reversed(found):  # the first ones on top
            if line.first.sparsity in (sparsity, None):
                _draw_line(axes, line, look[line.first.attention])
        axes.set(title=f"sparsity {100 * sparsity:g} %", xlabel="steps of fine-tuning", yscale="log")
        axes.set_xscale("symlog", linthresh=50)
        steps = sorted(found[0].first.losses)
        axes.set_xlim(-4, steps[-1] * 1.06)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        finish(axes, "both")
    panels[0].set_ylabel("denoising loss, held out")
    marks = [
        Line2D([], [], label=attention, color=colour, marker=marker, markersize=5)
        for attention, (colour, marker) in look.items()
    ]
    ways = {_way(line) for line in found} - {""}
    marks += [Line2D([], [], label=way, color=QUIET, **DASHES[way]) for way in DASHES if way in ways]
    legend(figure, marks, 4)
    return figure


def _draw_line(axes: Axes, line: Line, look: Look) -> None:
    steps = sorted(line.first.losses)
    means = [sum(run.losses[step] for run in line.runs) / len(line.runs) for step in steps]
    axes.plot(
        steps,
        means,
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linewidth=1.8,
        **DASHES[_way(line)],
    )


def draw_losses(runs: Sequence[Run], look: dict[str, Look]) -> Figure:
    """A row of dots for every variant but dense attention."""
    found = [line for line in lines(runs) if line.from_dense and line.first.attention != DENSE]
    figure = new_figure(9, 0.42 * len(found) + 0.9)
    axes = figure.subplots()
    for row, line in enumerate(found):
        values, (colour, marker) = [100 * each for each in line.from_dense], look[line.first.attention]
        axes.plot(values, [row] * len(values), marker, color=colour, alpha=0.7)
        middle = sum(values) / len(values)
        axes.plot([middle] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(found)), [line.label for line in found])
    axes.invert_yaxis()
    axes.set_xlabel("difference from dense attention (% of its loss)")
    finish(axes, "x")
    ink(axes)
    return figure
