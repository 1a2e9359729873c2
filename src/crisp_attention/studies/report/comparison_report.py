"""The report of two studies: a short page, a table and a summary; and the same on the terminal."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.studies.analysis import analyse
from crisp_attention.studies.report import numbers
from crisp_attention.studies.report.comparison import Both, Comparing, compare
from crisp_attention.studies.report.folder import check, replacing
from crisp_attention.studies.report.tables import mean_of
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import write
from crisp_attention.studies.study import Study


def write_comparison(first: Path, second: Path, output: Path) -> Comparing:
    """Compare two studies and write that into `output`, in place of an earlier report; what it says.

    Raises OptionError if a study is missing, or `output` cannot be written or holds other things.
    """
    check(output)
    found = compare(analyse(Study.read(first)), analyse(Study.read(second)))
    values = {"comparing": found, "lines": [(each, *_means(each)) for each in found.both]}
    with replacing(output) as folder:
        write(folder / "report.html", render("comparison.html", **values))
        write(folder / "summary.md", render("comparison.md", **values))
        write(folder / "table.csv", _table(found).to_csv(index=False))
    return found


def show_comparison(found: Comparing, console: Console) -> None:
    """Print the table of the comparison, and what differs between the studies."""
    table = Table("attention", "accuracy", "accuracy of the second", "second − first", box=box.SIMPLE_HEAD)
    for each in found.both:
        ours, theirs = _means(each)
        table.add_row(
            escape(each.first.configuration.label),
            f"{numbers.percent(ours)} {numbers.plus_minus(each.first.accuracy)}",
            f"{numbers.percent(theirs)} {numbers.plus_minus(each.second.accuracy)}",
            f"{numbers.points(each.difference)} \\[{numbers.span(each.interval)}]",
        )
    console.print(table)
    for name, (before, after) in found.options.items():
        console.print(f"{name}: {before} / {after}", markup=False, highlight=False, soft_wrap=True)


def _means(each: Both) -> tuple[float, float]:
    return mean_of(each.first, "accuracy"), mean_of(each.second, "accuracy")


def _table(found: Comparing) -> pd.DataFrame:
    rows = [
        {
            "method": each.first.configuration.method,
            "first": ours,
            "second": theirs,
            "difference": each.difference,
            "low": each.interval and each.interval.low,
            "high": each.interval and each.interval.high,
            "paired": found.paired,
            "runs_first": len(each.first.runs),
            "runs_second": len(each.second.runs),
        }
        for each in found.both
        for ours, theirs in [_means(each)]
    ]
    return pd.DataFrame(rows)
