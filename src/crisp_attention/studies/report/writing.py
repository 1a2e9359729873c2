"""The report of one study: page, tables, figures and summary, in a folder that is written completely or not at all."""

from pathlib import Path

from crisp_attention.drawing.svg import standalone
from crisp_attention.files import check_ours, check_replaced, replacing
from crisp_attention.studies.analysis import Analysis
from crisp_attention.studies.report import tables
from crisp_attention.studies.report.figures import (
    Picture,
    curve_pictures,
    head_pictures,
    layer_pictures,
    main_pictures,
)
from crisp_attention.studies.report.page import facts, page
from crisp_attention.studies.report.templates import render

OWN = {"report.html", "summary.md", "table.csv", "runs.csv", "figures"}


def write_report(analysis: Analysis, output: Path) -> None:
    """Write the report into `output`, in place of an earlier one.

    Raises OptionError if `output` cannot be written or holds other things.
    """
    check(output)
    main, curves = main_pictures(analysis), curve_pictures(analysis)
    heads, layers = head_pictures(analysis), layer_pictures(analysis)
    with replacing(output, check) as folder:
        write(folder / "report.html", page(analysis, main, curves, heads, layers))
        write(folder / "summary.md", render("summary.md", **facts(analysis)))
        write(folder / "table.csv", tables.configurations(analysis).to_csv(index=False))
        write(folder / "runs.csv", tables.runs(analysis).to_csv(index=False))
        _write_figures(folder / "figures", [*main, *curves, *heads, *layers])


def check(output: Path) -> None:
    """Raises OptionError if `output` is a file, or a folder with other things in it than a report."""
    check_replaced(output)
    check_ours(output, "a report", OWN.__contains__)


def write(path: Path, text: str) -> None:
    """Write a file; what a command line can hold and UTF-8 cannot becomes a question mark."""
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _write_figures(folder: Path, pictures: list[Picture]) -> None:
    folder.mkdir()
    for each in pictures:
        write(folder / f"{each.name}.svg", standalone(each.svg))
