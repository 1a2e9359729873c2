"""The tables of docs/results.md, from the studies in docs/studies as they are committed.

python -m benchmarks.study_tables
"""

from pathlib import Path

from crisp_attention.studies.analysis import Analysis, Line, analyse
from crisp_attention.studies.report.numbers import (
    NONE,
    decimal,
    percent,
    plus_minus,
    points,
    probability,
    span,
)
from crisp_attention.studies.report.tables import mean_of
from crisp_attention.studies.study import Study

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
NAMES = ("digits", "sst2", "rte")
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
    "computed by",
)


def table(name: str) -> list[str]:
    """The lines of a study's table in Markdown."""
    analysis = analyse(Study.read(STUDIES / name))
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(line) for line in analysis.lines)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def control(name: str) -> list[str]:
    """What each configuration gains over as many random keys, as one line each."""
    analysis: Analysis = analyse(Study.read(STUDIES / name))
    return [
        f"{line.configuration.label} minus {line.to_random.baseline.label}: "
        f"{points(line.to_random.difference.mean)} [{span(line.to_random.difference)}]"
        for line in analysis.lines
        if line.to_random
    ]


def _cells(line: Line) -> list[str]:
    found = line.to_dense
    compared = [NONE] * 4
    if found:
        compared = [
            f"{points(found.difference.mean)} [{span(found.difference)}]",
            f"[{span(found.bootstrap)}]",
            probability(found.p),
            percent(found.detectable),
        ]
    return [
        line.configuration.label,
        f"{line.configuration.epochs:g}",
        f"{percent(mean_of(line, 'accuracy'))} {plus_minus(line.accuracy)}",
        *compared,
        decimal(mean_of(line, "loss")),
        percent(mean_of(line, "ece"), 1),
        percent(mean_of(line, "train_accuracy"), 1),
        points(mean_of(line, "gap")),
        percent(mean_of(line, "achieved_sparsity"), 1),
        percent(mean_of(line, "kept_mass"), 1),
        ", ".join(line.kernels) or "not recorded",
    ]


def main() -> None:
    for name in NAMES:
        print(f"{name}\n", *table(name), "", *control(name), "", sep="\n")


if __name__ == "__main__":
    main()
