"""The report of a comparison: page, table and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crisp_attention.diffusion.figures import pictures
from crisp_attention.diffusion.findings import Line, findings, lines, relative, table
from crisp_attention.diffusion.options import DiffusionOptions
from crisp_attention.diffusion.runs import Run
from crisp_attention.diffusion.variants import DENSE
from crisp_attention.drawing.svg import inline, standalone
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import write


def write_report(runs: Sequence[Run], output: Path, options: DiffusionOptions) -> None:
    """Write report.html, table.csv and figures into the folder, in place of earlier ones."""
    drawn = pictures(runs)
    seeds = len({run.seed for run in runs})
    facts = {
        "model": "DiT, 64 tokens",
        "seeds": str(seeds),
        "trained from scratch for": f"{options.pretraining:,} steps",
        "fine-tuned for": f"{options.steps:,} steps",
        "block size": str(options.block_size),
        "generated digits": f"{options.samples:,}",
    }
    page = render(
        "diffusion.html",
        package="crisp_attention.diffusion",
        facts=facts,
        findings=findings(runs, quick=options.quick),
        pictures=[
            each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))}
            for each in drawn
        ],
        rows=[_row(line) for line in lines(runs)],
        seeds=seeds,
    )
    write(output / "report.html", page)
    write(output / "table.csv", table(runs).to_csv(index=False))
    (output / "figures").mkdir(exist_ok=True)
    for each in drawn:
        write(output / "figures" / f"{each.name}.svg", standalone(each.svg))


def _row(line: Line) -> dict[str, Any]:
    run = line.first
    return {
        "label": line.label,
        "loss": (line.loss, f"{line.loss:.4f}"),
        "start": (line.start, f"{line.start:.4f}"),
        "from_dense": relative(line.from_dense if run.attention != DENSE else None),
        "from_sla": relative(line.from_sla),
        "accuracy": (line.accuracy, f"{100 * line.accuracy:.1f}"),
        "frechet": (line.frechet, f"{line.frechet:.2f}"),
        "operations": (run.operations, f"{100 * run.operations:.0f}"),
        "softmax": (run.softmax_pairs, f"{100 * run.softmax_pairs:.1f}"),
        "linear": (run.linear_share, f"{100 * run.linear_share:.1f}"),
        "seconds": (run.seconds, f"{sum(each.seconds for each in line.runs) / len(line.runs):.0f}"),
    }
