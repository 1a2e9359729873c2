"""The pictures of a comparison: loss against steps, final losses by seed, and generated digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crisp_attention.diffusion.findings import Line, lines
from crisp_attention.diffusion.options import LOSSES, TRAINED
from crisp_attention.diffusion.runs import Run
from crisp_attention.diffusion.variants import DENSE
from crisp_attention.drawing.palette import INK, QUIET
from crisp_attention.drawing.style import Look, finish, ink, legend, looks, new_figure, wrapped
from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.report.figures import Picture


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
            "On held-out images, means over seeds; lower is better. Where a line begins, attention was just replaced.",
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
    """How each variant is drawn: attentions differ by their colours and marks."""
    labels = {line.label: _attention(line.label) for line in lines(runs)}
    look = looks(list(dict.fromkeys(labels.values())), baseline=DENSE)
    return {label: look[attention] for label, attention in labels.items()}


def _attention(label: str) -> str:
    return label.split(",")[0]


def _dashes(line: Line) -> str:
    """The style of a line: by its loss, and by what is trained."""
    alone, distilled = line.first.trained != TRAINED[0], line.first.loss != LOSSES[0]
    return {(False, False): "-", (False, True): "--", (True, False): ":", (True, True): "-."}[
        alone, distilled
    ]


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
    """A line for every variant."""
    figure = new_figure(10, 5)
    axes = figure.subplots()
    marks = []
    for line in lines(runs):
        steps = sorted(line.first.losses)
        means = [sum(run.losses[step] for run in line.runs) / len(line.runs) for step in steps]
        style: dict[str, Any] = {
            "color": look[line.label].colour,
            "marker": look[line.label].marker,
            "markersize": 5,
            "linestyle": _dashes(line),
        }
        axes.plot(steps, means, linewidth=1.8, **style)
        marks.append(Line2D([], [], label=line.label, **style))
    axes.set(xlabel="steps of fine-tuning", ylabel="denoising loss, held out", yscale="log")
    axes.set_xscale("symlog", linthresh=50)
    axes.set_xlim(-4, steps[-1] * 1.06)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    ticks = np.unique(np.round(np.geomspace(*axes.get_ylim(), 7), 2))
    axes.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
    finish(axes, "both")
    legend(figure, marks, 3)
    return figure


def draw_losses(runs: Sequence[Run], look: dict[str, Look]) -> Figure:
    """A row of dots for every variant but dense attention."""
    found = [line for line in lines(runs) if line.from_dense and line.first.attention != DENSE]
    figure = new_figure(9, 0.42 * len(found) + 0.9)
    axes = figure.subplots()
    for row, line in enumerate(found):
        values = [100 * each for each in line.from_dense]
        axes.plot(
            values, [row] * len(values), look[line.label].marker, color=look[line.label].colour, alpha=0.7
        )
        middle = sum(values) / len(values)
        axes.plot([middle] * 2, [row - 0.3, row + 0.3], color=look[line.label].colour, linewidth=2)
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(found)), [line.label for line in found])
    axes.invert_yaxis()
    axes.set_xlabel("difference from dense attention (% of its loss)")
    finish(axes, "x")
    ink(axes)
    return figure
