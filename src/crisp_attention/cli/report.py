"""`crisp report`: the report of one study, or of two compared."""

from pathlib import Path

from rich.console import Console

from crisp_attention.cli.options import ReportOptions
from crisp_attention.errors import OptionError
from crisp_attention.runs.terminal import table_console
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.report.comparison import show_comparison, write_comparison
from crisp_attention.studies.report.tables import say, show
from crisp_attention.studies.report.writing import check
from crisp_attention.studies.study import Study
from crisp_attention.studies.sweep.storage import Storage


def run_report(options: ReportOptions, notes: Console) -> None:
    """Write the report of one study, or the comparison of two, and print what it says; notes go to `notes`.

    Raises OptionError if there are no such studies, or the output folder cannot be written.
    """
    if len(options.studies) not in (1, 2):
        raise OptionError(f"expected one study, or two to compare; found {len(options.studies)}")
    if len(options.studies) == 1:
        if options.output is not None:
            check(options.output)
        _one(Study.open(options.studies[0]), options.output, notes)
        return
    first, second = options.studies
    output = options.output or first / f"report-with-{second.resolve().name}"
    found = write_comparison(first, second, output)
    console = table_console()
    show_comparison(found, console)
    _end(found.notes, output / "report.html", console, notes)


def end_with_report(study: StudyFolder, storage: str | None, notes: Console) -> None:
    """Write and print the report of a study whose runs have ended, perhaps under several workers at once."""
    with Storage(storage, study.path).locked():
        _one(Study(study), None, notes)


def _one(study: Study, output: Path | None, notes: Console) -> None:
    page = study.report(output)
    console = table_console()
    show(study.analysis, console)
    _end(study.analysis.notes, page, console, notes)


def _end(said: tuple[str, ...], page: Path, console: Console, notes: Console) -> None:
    for note in said:
        say(notes, note)
    say(console, f"the report is {page}")
