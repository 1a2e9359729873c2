"""The study of SLA in a diffusion transformer in docs/results.md: tables and pictures, from what docs/studies holds.

python -m benchmarks.diffusion_tables              # prints the tables
python -m benchmarks.diffusion_tables --pictures   # and draws docs/images/diffusion-*.png
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from crisp_attention.diffusion.figures import draw_digits, draw_losses, draw_steps, looks_of
from crisp_attention.diffusion.findings import Line, lines, relative
from crisp_attention.diffusion.runs import runs_in
from crisp_attention.diffusion.variants import DENSE

DOCS = Path(__file__).parents[1] / "docs"
STUDY = DOCS / "studies" / "diffusion"


@dataclass(frozen=True)
class Options:
    """Print what the committed study says."""

    pictures: bool = False
    """Draw the pictures of the documentation as well."""


def table() -> list[str]:
    """Means over seeds; differences with their intervals over seeds, paired."""
    found = lines(runs_in(STUDY))
    headings = [
        "variant",
        "loss",
        "from dense (%)",
        "from SLA (%)",
        "digits recognised (%)",
        "Fréchet distance",
    ]
    headings += ["operations (%)", "softmax pairs (%)", "linear pairs (%)"]
    return [_row(headings), _row(["---"] * len(headings)), *(_row(_cells(line)) for line in found)]


def steps() -> list[str]:
    """The mean loss at each step that was looked at."""
    found = lines(runs_in(STUDY))
    looked_at = sorted(found[0].first.losses)
    rows = [
        [
            line.label,
            *(f"{sum(run.losses[at] for run in line.runs) / len(line.runs):.4f}" for at in looked_at),
        ]
        for line in found
    ]
    headings = ["variant", *(f"{at:,} steps" for at in looked_at)]
    return [_row(headings), _row(["---"] * len(headings)), *map(_row, rows)]


def _cells(line: Line) -> list[str]:
    run = line.first
    return [
        line.label,
        f"{line.loss:.4f}",
        relative(line.from_dense)[1] if run.attention != DENSE else "–",
        relative(line.from_sla)[1] or "–",
        f"{100 * line.accuracy:.1f}",
        f"{line.frechet:.2f}",
        f"{100 * run.operations:.0f}",
        f"{100 * run.softmax_pairs:.1f}",
        f"{100 * run.linear_share:.1f}",
    ]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = tyro.cli(Options)
    print(*table(), "", *steps(), sep="\n")
    if options.pictures:
        runs = runs_in(STUDY)
        look = looks_of(runs)
        for name, figure in (
            ("digits", draw_digits(runs)),
            ("steps", draw_steps(runs, look)),
            ("losses", draw_losses(runs, look)),
        ):
            figure.savefig(DOCS / "images" / f"diffusion-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
