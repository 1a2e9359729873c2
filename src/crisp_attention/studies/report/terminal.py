"""What a study says, on the terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.studies import numbers
from crisp_attention.studies.analysis import Analysis, Line, Verdict, answer, statements
from crisp_attention.studies.numbers import Unit

COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.NOT_SHOWN: "default"}


def show(analysis: Analysis, console: Console) -> None:
    """Print the answer, a verdict for each configuration, and the table."""
    say(console, answer(analysis))
    for each in statements(analysis):
        if each.verdict is not None and each.baseline.is_dense:
            label = f"[bold {COLOURS[each.verdict]}]{escape(each.configuration.label)}[/]"
            console.print(f"  {label}: {escape(each.words)}", highlight=False, soft_wrap=True)
    console.print(_table(analysis))


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(analysis: Analysis) -> Table:
    unit = Unit(analysis.metric)
    title = f"{unit.metric.title} on the {analysis.split} examples {unit.caption}; ±: 95 %"
    table = Table("attention", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in (unit.metric.title, "minus dense", "p", "minus random", "sparsity (%)"):
        table.add_column(heading, justify="right")
    for line in analysis.lines:
        table.add_row(escape(line.configuration.label), *_cells(line, unit))
    return table


def _cells(line: Line, unit: Unit) -> list[str]:
    dense, random = line.to_dense, line.to_random
    return [
        f"{unit.score(line.mean('score'))} {unit.plus_minus(line.score)}",
        unit.difference(dense.difference.mean) if dense else "",
        numbers.probability(dense.p) if dense else "",
        unit.difference(random.difference.mean) if random else "",
        numbers.percent(line.mean("achieved_sparsity"), 1),
    ]
