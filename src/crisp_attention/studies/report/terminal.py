"""What a study says, on the terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.studies.analysis import Analysis, Line, Verdict
from crisp_attention.studies.report import numbers
from crisp_attention.studies.report.tables import mean_of
from crisp_attention.studies.report.verdicts import answer, sentences

COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.NOT_SHOWN: "default"}


def show(analysis: Analysis, console: Console) -> None:
    """Print the answer, a verdict for each configuration, and the table."""
    say(console, answer(analysis))
    for line, verdict, words in sentences(analysis):
        colour = COLOURS[verdict]
        console.print(
            f"  [bold {colour}]{escape(line.configuration.label)}[/]: {escape(words)}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(_table(analysis))


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(analysis: Analysis) -> Table:
    title = f"accuracy on the {analysis.split} examples in %, ±: 95 %; differences in points"
    table = Table("attention", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("accuracy", "to dense", "p", "to random", "sparsity"):
        table.add_column(heading, justify="right")
    for line in analysis.lines:
        table.add_row(escape(line.configuration.label), *_cells(line))
    return table


def _cells(line: Line) -> list[str]:
    dense, random = line.to_dense, line.to_random
    return [
        f"{numbers.percent(mean_of(line, 'accuracy'))} {numbers.plus_minus(line.accuracy)}",
        numbers.points(dense.difference.mean) if dense else "",
        numbers.probability(dense.p) if dense else "",
        numbers.points(random.difference.mean) if random else "",
        numbers.percent(mean_of(line, "achieved_sparsity"), 1),
    ]
