"""The page of a run: its bars, pictures and numbers, in one file."""

import shlex
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from rich.text import Text

from crisp_attention.bench.bar_picture import draw_bars
from crisp_attention.bench.picture import figure_of
from crisp_attention.bench.printed import BARS, Missing, printed
from crisp_attention.bench.results import Results
from crisp_attention.bench.summary import counted, judged
from crisp_attention.drawing.svg import drawn, inline
from crisp_attention.studies.report.figures import Picture
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import write

CLASSES = {"red": "worse", "green": "better", "dim": "small quiet"}


def write_page(results: Results, output: Path) -> None:
    """Write bench.html into the folder, in place of an earlier one."""
    bars = judged(results)
    page = render(
        "bench.html",
        package="crisp_attention.bench",
        facts=_facts(results),
        command=shlex.join(["crisp", *results.command[1:]]),
        answer=counted(bars),
        pictures=[
            each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))}
            for each in _pictures(results)
        ],
        sections=_sections(results),
        attends=bool(results.attention or results.situated or results.step or results.memory),
        measured={name for name, value in vars(results).items() if value},
    )
    write(output / "bench.html", page)


def _facts(results: Results) -> dict[str, str]:
    found = results.machine
    return {
        "processor": found.get("gpu") or found["processor"],
        "threads": str(found["threads"]),
        **{
            name: version
            for name, version in found["versions"].items()
            if version and name in ("torch", "numba")
        },
    }


def _pictures(results: Results) -> list[Picture]:
    found, bars = list[Picture](), judged(results)
    if any(each.share is not None for each in bars):
        found.append(
            Picture(
                "bars",
                "How much of each bar was used",
                "A bar holds left of the line and is missed right of it; the worst at the top.",
                drawn(draw_bars(bars), "bars"),
                wide=False,
            )
        )
    if results.attention:
        caption = (
            "Attention alone: ours, its peers and the limit of arithmetic, in milliseconds for each sequence."
        )
        found.append(
            Picture(
                "lengths", "Time against length", caption, drawn(figure_of(results), "lengths"), wide=True
            )
        )
    return found


class Shown(NamedTuple):
    """A table, with its title, heads of columns, whether each column is text, and rows of cells."""

    title: str
    heads: list[Markup]
    texts: list[bool]
    rows: list[list[Markup]]
    missing: list[Missing]


def _sections(results: Results) -> dict[str, list[Shown]]:
    """What the terminal shows, by part, the bars first."""
    found: dict[str, list[Shown]] = {BARS: []}
    for part, table, missing in printed(results, side_by_side=max(1, len(results.attention))):
        shown = Shown("", [], [], [], missing)
        if table is not None:
            columns = [[_html(str(cell)) for cell in each.cells] for each in table.columns]
            shown = Shown(
                str(table.title),
                [_html(str(each.header)) for each in table.columns],
                [each.justify == "left" for each in table.columns],
                [list(row) for row in zip(*columns, strict=True)],
                missing,
            )
        found.setdefault(part, []).append(shown)
    return {part: tables for part, tables in found.items() if tables}


def _html(cell: str) -> Markup:
    """The text of a terminal's cell, a line below another, with the class of its colour."""
    lines = []
    for line in Text.from_markup(cell).split("\n"):
        words = {str(each.style) for each in line.spans}
        classes = " ".join(name for colour, name in CLASSES.items() if colour in words)
        lines.append(
            Markup('<span class="{}">{}</span>').format(classes, line.plain) if classes else line.plain
        )
    return Markup("<br>").join(lines)
