"""The tables and the picture of pruning in docs/results.md, from the studies in docs/studies as they are committed.

python -m benchmarks.pruning_tables --pictures
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from crisp_attention.drawing.palette import QUIET
from crisp_attention.drawing.style import DPI, finish, looks, new_figure
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
    "pruning-trec-5": "MiniLM on TREC, 5 of 28 classes",
    "pruning-trec-10": "MiniLM on TREC, 10 of 28 classes",
}
# what the picture shows: whose gradients, and which pattern
SERIES = {
    "class-aware, 2:4 in blocks": ("classes", "2:4"),
    "class-aware, blocks alone": ("classes", "none"),
    "gradients of all classes, 2:4 in blocks": ("all", "2:4"),
    "gradients of random classes, 2:4 in blocks": ("random", "2:4"),
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


def draw(name: str, path: Path) -> None:
    """Accuracy on the classes against the measured time of the compressed model, both as in the tables."""
    read = read_study(StudyFolder.read(STUDIES / name))
    times = {
        (each["sparsity"], each["pattern"]): each["timed"][1]["ratio"]["median"]
        for each in json.loads((STUDIES / "pruning-times.json").read_text())["cases"]
    }
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    dense = 100 * _mean(read, read.study.dense, "class_accuracy")
    axes.axhline(dense, color=QUIET, linewidth=1)
    axes.plot([1], [dense], "o", color=QUIET, label="dense")
    highest: dict[tuple[float, float], float] = {}  # where the labels of the shares go
    shown = looks(SERIES, controls=["gradients of random classes, 2:4 in blocks"])
    for series, (gradients, pattern) in SERIES.items():
        points_ = []
        for each in read.study.configurations:
            own = each.treatment
            if not isinstance(own, Pruning) or (own.saliency, own.gradients, own.pattern) != (
                "taylor",
                gradients,
                pattern,
            ):
                continue
            if own.block_size and own.sparsity is not None and (own.sparsity, pattern) in times:
                score = 100 * _mean(read, each, "class_accuracy")
                points_.append((times[own.sparsity, pattern], score, own.sparsity))
        if points_:
            xs, ys, shares = zip(*sorted(points_), strict=True)
            look = shown[series]
            axes.plot(xs, ys, color=look.colour, marker=look.marker, label=series)
            for x, y, share in zip(xs, ys, shares, strict=True):
                highest[x, share] = max(y, highest.get((x, share), y))
    for (x, share), y in highest.items():
        axes.annotate(
            f"{share:.0%} zeros", (x, y), (0, 8), textcoords="offset points", color=QUIET, ha="center"
        )
    axes.margins(x=0.1)
    axes.set(xlabel="time of a batch, compressed, as a ratio to dense", ylabel="accuracy on the classes (%)")
    axes.legend(frameon=False, loc="lower right")
    finish(axes, "both")
    figure.savefig(path, dpi=DPI)


def main() -> None:
    for name in committed():
        print(f"{NAMES[name]}\n", *table(name), "", sep="\n")
    if "--pictures" in sys.argv:  # needs the study on TREC, and what pruning_times measured
        draw("pruning-trec-5", ROOT / "images" / "pruning-trec-5.png")


if __name__ == "__main__":
    main()
