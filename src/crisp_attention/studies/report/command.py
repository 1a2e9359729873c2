"""From the options of `crisp report` to the files."""

from pathlib import Path

from rich.console import Console

from crisp_attention.errors import OptionError
from crisp_attention.runs.terminal import table_console
from crisp_attention.studies.options import ReportOptions
from crisp_attention.studies.report.comparison_report import show_comparison, write_comparison
from crisp_attention.studies.report.terminal import say, show
from crisp_attention.studies.report.writing import write_report


def run_report(options: ReportOptions, notes: Console) -> None:
    """Write the report of one study, or the comparison of two, and print what it says; notes go to `notes`.

    Raises OptionError if there are no such studies, or the output folder cannot be written.
    """
    if len(options.studies) not in (1, 2):
        raise OptionError(f"expected one study, or two to compare; found {len(options.studies)}")
    console = table_console()
    output = options.output or _default(options.studies)
    if len(options.studies) == 1:
        analysis = write_report(options.studies[0], output)
        said = analysis.notes
        show(analysis, console)
    else:
        first, second = options.studies
        comparing = write_comparison(first, second, output)
        said = comparing.notes
        show_comparison(comparing, console)
    for note in said:
        say(notes, note)
    say(console, f"the report is {output / 'report.html'}")


def _default(studies: tuple[Path, ...]) -> Path:
    first = studies[0]
    return first / "report" if len(studies) == 1 else first / f"report-beside-{studies[1].resolve().name}"
