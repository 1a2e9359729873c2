"""The tables of pruning in docs/results.md, from the studies in docs/studies as they are committed.

python -m benchmarks.pruning_tables
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.studies.analysis.compare import compare_all
from crisp_attention.studies.analysis.read import StudyRead, read_study
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.numbers import Unit, percent, points, probability
from crisp_attention.studies.plan import Configuration

ROOT = Path(__file__).parents[1] / "docs"
STUDIES = ROOT / "studies"
NAMES = {
    "pruning-resnet-2": "ResNet on digits, 2 of 10 classes",
    "pruning-resnet-5": "ResNet on digits, 5 of 10 classes",
    "pruning-vit-2": "ViT on digits, 2 of 10 classes",
    "pruning-vit-5": "ViT on digits, 5 of 10 classes",
}
HEADINGS = (
    "weights",
    "on the classes (%)",
    "among them (%)",
    "on all (%)",
    "minus dense [t]",
    "p (Holm)",
    "class-aware minus this [t]",
    "p (Holm)",
    "zeros (%)",
)


def committed() -> list[str]:
    """The studies that are there."""
    return [name for name in NAMES if (STUDIES / name / "study.json").is_file()]


def table(name: str) -> list[str]:
    """The lines of a study's table in Markdown."""
    read = read_study(StudyFolder.read(STUDIES / name))
    others = [each for each in read.study.configurations if not each.is_dense]
    to_dense = compare_all(others, read.study.dense, read)
    ours = {each: aware for aware in others for each in _beside(aware, others)}
    from_aware = {}
    for aware in dict.fromkeys(ours.values()):
        from_aware |= compare_all([each for each in ours if ours[each] == aware], aware, read)
    unit, rows = Unit(read.metric), []
    for each in read.study.configurations:
        found, aware = to_dense.get(each.id), from_aware.get(each.id)
        rows.append(
            [
                each.label,
                *(
                    percent(_mean(read, each, name))
                    for name in ("class_accuracy", "among_classes", "accuracy")
                ),
                f"{points(found.difference.mean)} [{unit.span(found.difference)}]" if found else "–",
                probability(found.p) if found else "–",
                f"{points(-aware.difference.mean)} [{_turned(unit.span(aware.difference))}]"
                if aware
                else "–",
                probability(aware.p) if aware else "–",
                percent(read.table(each)["achieved_sparsity"].mean(), 1),
            ]
        )
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _beside(aware: Configuration, others: list[Configuration]) -> Iterator[Configuration]:
    """What class-aware pruning is compared with: all others of the same share of zeros."""
    own = aware.treatment
    assert isinstance(own, Pruning)
    if (own.saliency, own.gradients, own.pattern) != ("taylor", "classes", "2:4"):
        return
    for each in others:
        if each is not aware and each.treatment.target == own.target:  # type: ignore[attr-defined]
            yield each


def _turned(span: str) -> str:
    """An interval of the difference the other way round."""
    low, high = span.replace("−", "-").split(" to ")
    return " to ".join(f"{-float(end):+.2f}".replace("-", "−") for end in (high, low))


def _mean(read: StudyRead, configuration: Configuration, score: str) -> float:
    runs = read.runs[configuration.id].values()
    return float(pd.Series([run.metrics[read.split][score] for run in runs]).mean())


def main() -> None:
    for name in committed():
        print(f"{NAMES[name]}\n", *table(name), "", sep="\n")


if __name__ == "__main__":
    main()
