"""The figures of a report."""

from typing import NamedTuple
from xml.etree.ElementTree import Element

from crisp_attention.drawing.svg import drawn
from crisp_attention.studies.analysis import Analysis
from crisp_attention.studies.report.figures.curves import ACCURACIES, LOSSES, draw_curves
from crisp_attention.studies.report.figures.heads import draw_heads
from crisp_attention.studies.report.figures.rows import draw_differences, draw_gaps
from crisp_attention.studies.report.figures.sparsity import draw_sparsity


class Picture(NamedTuple):
    """A figure with its file name, its title, and what to see in it; a wide one needs the whole page."""

    name: str
    title: str
    caption: str
    svg: Element
    wide: bool = True


def main_pictures(analysis: Analysis) -> list[Picture]:
    """Accuracy and generalisation; without differences where nothing is compared with dense."""
    accuracy = Picture(
        "accuracy",
        "Accuracy against sparsity",
        "Dots: single seeds. Marks: means with 95 % t-intervals over seeds. Dashed line and band: dense. "
        "Methods at one sparsity are drawn beside each other.",
        drawn(draw_sparsity(analysis), "accuracy"),
    )
    gap = Picture(
        "gap",
        "Generalisation gap",
        "Further left: less of the training accuracy is lost on new examples.",
        drawn(draw_gaps(analysis), "gap"),
        wide=False,
    )
    if not any(line.to_dense for line in analysis.lines):
        return [accuracy, gap]
    difference = Picture(
        "difference",
        "Difference from dense",
        "Paired by seed. A configuration differs from dense only if both its intervals leave out the dashed "
        "zero; the verdicts correct for the number of comparisons as well.",
        drawn(draw_differences(analysis), "difference"),
        wide=False,
    )
    return [accuracy, difference, gap]


def curve_pictures(analysis: Analysis) -> list[Picture]:
    """What the runs logged while they trained."""
    seeds = "Thin lines: single seeds; thick: their mean; dashed grey: the mean of dense."
    loss = drawn(draw_curves(analysis, LOSSES, "loss (nats)"), "loss")
    learning = drawn(draw_curves(analysis, ACCURACIES, "accuracy (%)"), "learning")
    return [
        Picture("loss", "Loss while training", seeds, loss),
        Picture("learning", "Validation accuracy while training", seeds, learning),
    ]


def head_pictures(analysis: Analysis) -> list[Picture]:
    """For each sparse configuration that ran, what its layers and heads kept."""
    pictures = []
    for each in analysis.study.configurations:
        if not each.is_dense and (runs := analysis.study.finished(each)):
            name, seeds = f"heads-{each.id}", "seed" if len(runs) == 1 else "seeds"
            caption = f"Mean over {len(runs)} {seeds}, measured in evaluation."
            pictures.append(
                Picture(
                    name, each.label, caption, drawn(draw_heads([run.measurements() for run in runs]), name)
                )
            )
    return pictures
