"""Everything that a run prints, part by part: for the terminal, and for the page."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.bench import tables
from crisp_attention.bench.contender import Absent
from crisp_attention.bench.results import Results
from crisp_attention.bench.summary import judged

SIDE_BY_SIDE = 5  # lengths, in 80 columns
BARS = "Bars"


class Missing(NamedTuple):
    """A contender that is missing, where, which is empty if it is so everywhere, and why."""

    name: str
    at: str
    reason: str


class Printed(NamedTuple):
    """A table of a part of the run, its title apart, and what is missing from it."""

    part: str
    table: Table | None
    missing: list[Missing]


def printed(results: Results, side_by_side: int = SIDE_BY_SIDE) -> Iterator[Printed]:
    """What was measured, the bars last; an attention table has so many lengths at most."""
    for name in dict.fromkeys(each.name for each in results.attention):
        for backward in (False, True):
            cells = [each for each in results.attention if (each.name, each.backward) == (name, backward)]
            absent = _missing((f"{each.shape['length']:,}", each.absent) for each in cells)
            starts = range(0, len(cells), side_by_side)
            for first in starts:
                table = tables.attention(cells[first : first + side_by_side])
                yield Printed("Attention", table, absent if first == starts[-1] else [])
    for part in dict.fromkeys(each.part for each in results.situated):
        some = [each for each in results.situated if each.part == part]
        absent = _missing((f"{each.row}, {each.size}", each.absent) for each in some)
        yield Printed(part.capitalize(), tables.situated(some), absent)
    if results.step:
        absent = _missing((f"{each.length:,}", each.absent) for each in results.step)
        yield Printed("Fine-tuning", tables.steps(results), absent)
    if results.memory:
        absent = _missing(
            (f"{each.method}, {'forward + backward' if each.backward else 'forward'}", each.absent)
            for each in results.memory
        )
        yield Printed("Memory", tables.memory(results), absent)
    if results.first_call:
        absent = _missing((each.method, each.absent) for each in results.first_call)
        yield Printed("First calls", tables.first_calls(results), absent)
    if results.hooked:
        absent = _missing((each.model, each.absent) for each in results.hooked)
        yield Printed("Hooks", tables.hooked(results.hooked), absent)
    yield from _pruned(results)
    if results.predicted:
        absent = _missing((f"{each.shape['length']:,}", each.absent) for each in results.predicted)
        yield Printed("Predicted blocks", tables.predicted(results.predicted), absent)
    if results.listed:
        yield Printed("Predicted blocks", tables.listed(results), [])
    if found := judged(results):
        yield Printed(BARS, tables.bars(found), [])


def _pruned(results: Results) -> Iterator[Printed]:
    timed = [each for each in results.pruned if each.timed]
    if layers := [each for each in timed if each.saved_bytes is None]:
        yield Printed("Pruned weights", tables.pruned_layers(layers), [])
    if models := [each for each in timed if each.saved_bytes is not None]:
        yield Printed("Pruned weights", tables.pruned_models(models), [])
    if absent := _missing((f"{each.subject}, {each.size}", each.absent) for each in results.pruned):
        yield Printed("Pruned weights", None, absent)


def _missing(found: Iterable[tuple[str, list[Absent]]]) -> list[Missing]:
    """Each contender and reason once, with the places, unless it is missing from all of them."""
    where: dict[tuple[str, str], list[str]] = {}
    for place, absent in (cells := list(found)):
        for each in absent:
            where.setdefault((each.name, each.reason), []).append(place)
    return [
        Missing(name, "; ".join(places) if len(places) < len(cells) else "", reason)
        for (name, reason), places in where.items()
    ]


def show(results: Results, console: Console) -> None:
    """Print everything that was measured, with what is missing and why, and the bars."""
    for _, table, missing in printed(results):
        if table is not None:
            # a line of its own: rich would break the title to the table's width
            console.print(f"[bold]{table.title}[/]", highlight=False, soft_wrap=True)
            table.title = None
            console.print(table)
        for name, at, reason in missing:
            line = f"  [bold]{escape(name)}[/]{f' not at {at}' if at else ''}: {escape(reason)}"
            console.print(line, highlight=False, soft_wrap=True)
