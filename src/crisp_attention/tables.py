"""Short tables of results, for terminals and notebooks."""

from collections.abc import Sequence
from html import escape

MOST = 24  # rows that are shown; of more the first and the last ones
Cells = Sequence[str]


def as_text(caption: str, headings: Cells, rows: Sequence[Cells]) -> str:
    """A caption and a table; the last column, which may be long, is flush left.

    Examples
    --------
    >>> print(as_text("Two layers", ["layer", "sparsity", "name"], [["0", "50.0%", "first"], ["1", "8.0%", "second"]]))
    Two layers
    layer  sparsity  name
        0     50.0%  first
        1      8.0%  second
    """
    lines = [headings, *_shown(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings) - 1)]
    cells = ([each.rjust(width) for each, width in zip(line, widths, strict=False)] for line in lines)
    return "\n".join(
        [caption, *("  ".join([*left, line[-1]]) for left, line in zip(cells, lines, strict=True))]
    )


def as_html(caption: str, headings: Cells, rows: Sequence[Cells]) -> str:
    """The same for a notebook."""

    def row(kind: str, cells: Cells) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(each)}</{kind}>" for each in cells) + "</tr>"

    lines = [row("th", headings), *(row("td", each) for each in _shown(rows))]
    return f"<table><caption>{escape(caption)}</caption>{''.join(lines)}</table>"


def _shown(rows: Sequence[Cells]) -> list[Cells]:
    if len(rows) <= MOST:
        return list(rows)
    half = MOST // 2
    return [*rows[:half], ["…"] * len(rows[0]), *rows[-half:]]
