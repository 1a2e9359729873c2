"""The studies of Sparsefinder in docs/results.md: tables and pictures, from what is committed in docs/studies.

python -m benchmarks.sparsefinder_tables                        # prints the tables and what was found
python -m benchmarks.sparsefinder_tables --pictures             # and draws docs/images/sparsefinder-*.png
python -m benchmarks.sparsefinder_tables --keep runs/mlm --name wikitext-2   # commits a study, means over heads
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from crisp_attention.sparsefinder.figures import draw
from crisp_attention.sparsefinder.findings import Axis, Results, axes_of, findings
from crisp_attention.sparsefinder.fronts import GRID
from crisp_attention.sparsefinder.quality import Quality

DOCS = Path(__file__).parents[1] / "docs"
STUDIES = DOCS / "studies" / "sparsefinder"
QUALITIES = {
    "sst2": Quality("accuracy", lambda model: np.nan, percent=True),
    "wikitext-2": Quality("masked-LM loss", lambda model: np.nan, higher_is_better=False),
}
LEARNED = ("distance", "quantize", "kmeans")
LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
POINT = ["variant", "setting", "seed", "layer"]


@dataclass(frozen=True)
class Options:
    """Print what the committed studies say."""

    pictures: bool = False
    """Draw the pictures of the documentation as well."""
    keep: Path | None = None
    """A study to commit in place of the one with the name."""
    name: str = "sst2"
    """Of the study that is kept."""


def read(name: str) -> Results:
    """A study as it is committed."""
    scores = pd.read_csv(STUDIES / name / "scores.csv.gz")
    return Results(scores, pd.read_csv(STUDIES / name / "quality.csv"), LEARNED, QUALITIES[name])


def committed() -> list[str]:
    """The names of the studies that are there."""
    return [name for name in QUALITIES if (STUDIES / name).is_dir()]


def keep(study: Path, name: str) -> None:
    """Commit a study: its scores of each layer, means over heads, with four digits, and the quality of the model."""
    folder = STUDIES / name
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(study / "table.csv").drop(columns="head")
    means = table.groupby(POINT, sort=False).mean().round(4).reset_index()
    means.to_csv(folder / "scores.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
    pd.read_csv(study / "quality.csv").round(5).to_csv(folder / "quality.csv", index=False)


def table(name: str) -> list[str]:
    """The best that each variant reaches with at least a sparsity, in Markdown."""
    lines = []
    for axis in axes_of(read(name)):
        title = f"{axis.title} (%)" if axis.percent else axis.title
        lines += [
            f"| {title} at a sparsity of | {' | '.join(f'{level:.0%}' for level in LEVELS)} |",
            f"| --- |{' --- |' * len(LEVELS)}",
            *(f"| {variant} | {' | '.join(_cells(axis, curve))} |" for variant, curve in axis.curves.items()),
            "",
        ]
    return lines[:-1]


def _cells(axis: Axis, curve: np.ndarray) -> list[str]:
    found = [curve[int(np.searchsorted(GRID, level - 1e-9))] for level in LEVELS]
    return [
        "–" if np.isnan(each) else f"{100 * each:.1f}" if axis.percent else f"{each:.2f}" for each in found
    ]


def main(options: Options) -> None:
    """Do what was asked for, and print."""
    if options.keep is not None:
        keep(options.keep, options.name)
    for name in committed():
        results = read(name)
        print(f"{name}\n", *findings(results), "", *table(name), "", sep="\n")
        if options.pictures:
            for axis in axes_of(results):
                path = DOCS / "images" / f"sparsefinder-{name}-{axis.name}.png"
                draw(results, axis).savefig(path, dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Options))
