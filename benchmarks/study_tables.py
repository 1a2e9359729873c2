"""The tables of docs/results.md, from the studies in docs/studies as they are committed.

python -m benchmarks.study_tables
"""

from pathlib import Path

from crisp_attention.runs.task.metrics import ACCURACY
from crisp_attention.studies.analysis import Analysis, Line, analyse
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.numbers import (
    NONE,
    Unit,
    decimal,
    percent,
    points,
    probability,
)

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
UNIT = Unit(ACCURACY)
NAMES = ("digits", "sst2", "rte", "rte-sla", "sst2-sla", "temperature")
HEADINGS = (
    "attention",
    "epochs",
    "accuracy (%)",
    "difference from dense [t]",
    "[bootstrap]",
    "p (Holm)",
    "detectable",
    "NLL",
    "ECE (%)",
    "train accuracy (%)",
    "train − validation",
    "achieved sparsity (%)",
    "kept mass (%)",
    "kernel",
)


def table(name: str) -> list[str]:
    """The lines of a study's table in Markdown."""
    analysis = analyse(StudyFolder.read(STUDIES / name))
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(line) for line in analysis.lines)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def control(name: str) -> list[str]:
    """What each configuration gains over as many random keys, as one line each."""
    analysis: Analysis = analyse(StudyFolder.read(STUDIES / name))
    return [
        f"{line.configuration.label} minus {line.to_random.baseline.label}: "
        f"{points(line.to_random.difference.mean)} [{UNIT.span(line.to_random.difference)}]"
        for line in analysis.lines
        if line.to_random
    ]


def _cells(line: Line) -> list[str]:
    found = line.to_dense
    compared = [NONE] * 4
    if found:
        compared = [
            f"{points(found.difference.mean)} [{UNIT.span(found.difference)}]",
            f"[{UNIT.span(found.bootstrap)}]",
            probability(found.p),
            percent(found.detectable),
        ]
    return [
        line.configuration.label,
        f"{line.configuration.recipe.epochs:g}",
        f"{percent(line.mean('score'))} {UNIT.plus_minus(line.score)}",
        *compared,
        decimal(line.mean("loss")),
        percent(line.mean("ece"), 1),
        percent(line.mean("train_score"), 1),
        points(line.mean("gap")),
        percent(line.mean("achieved_sparsity"), 1),
        percent(line.mean("kept_mass"), 1),
        ", ".join(line.kernels) or "not recorded",
    ]


def main() -> None:
    for name in NAMES:
        print(f"{name}\n", *table(name), "", *control(name), "", sep="\n")


if __name__ == "__main__":
    main()
