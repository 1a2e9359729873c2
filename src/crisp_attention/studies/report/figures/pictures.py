"""The figures of a report."""

from typing import NamedTuple
from xml.etree.ElementTree import Element

from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.analysis import Analysis
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.report.figures.scores import draw_differences, draw_gaps, draw_sparsity
from crisp_attention.studies.report.figures.training import LOSSES, draw_curves, draw_heads, learning


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
        f"Near zero: as good on new examples as on those of the training ({metric.title}).",
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


def head_pictures(analysis: Analysis) -> list[Picture]:
    """For each sparse configuration that ran, what its layers and heads kept."""
    pictures = []
    for line in analysis.lines:
        each, runs = line.configuration, line.measurements
        if not each.is_dense and runs:
            name, seeds = f"heads-{each.id}", "seed" if len(runs) == 1 else "seeds"
            caption = f"Mean over {len(runs)} {seeds}, measured in evaluation."
            pictures.append(Picture(name, each.label, caption, drawn(draw_heads(runs), name)))
    return pictures
