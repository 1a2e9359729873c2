"""The report of one study: the page, the tables, the figures and the summary."""

from pathlib import Path

from crisp_attention.drawing.svg import standalone
from crisp_attention.studies.analysis import Analysis, analyse
from crisp_attention.studies.report import tables
from crisp_attention.studies.report.figures import Picture, curve_pictures, head_pictures, main_pictures
from crisp_attention.studies.report.folder import check, replacing
from crisp_attention.studies.report.page import facts, page
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.study import Study


def write_report(study_folder: Path, output: Path) -> Analysis:
    """Analyse the study and write its report into `output`, in place of an earlier one; what it says.

    Raises OptionError if there is no study, or `output` cannot be written or holds other things.
    """
    check(output)
    analysis = analyse(Study.read(study_folder))
    main, curves, heads = main_pictures(analysis), curve_pictures(analysis), head_pictures(analysis)
    with replacing(output) as folder:
        write(folder / "report.html", page(analysis, main, curves, heads))
        write(folder / "summary.md", render("summary.md", **facts(analysis)))
        write(folder / "table.csv", tables.configurations(analysis).to_csv(index=False))
        write(folder / "runs.csv", tables.runs(analysis).to_csv(index=False))
        _write_figures(folder / "figures", [*main, *curves, *heads])
    return analysis


def write(path: Path, text: str) -> None:
    """Write a file; what a command line can hold and UTF-8 cannot becomes a question mark."""
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _write_figures(folder: Path, pictures: list[Picture]) -> None:
    folder.mkdir()
    for each in pictures:
        write(folder / f"{each.name}.svg", standalone(each.svg))
