"""What `crisp.explain` found, as rows and as a text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Explained:
    """The kernel of one layer, or of some of its heads; `lacks` says of the other kernels why not they.

    `kernel` is None for a layer that Crisp leaves to the model's own attention.
    """

    layer: int
    name: str
    heads: tuple[int, ...]
    method: str
    kernel: str | None
    why: str
    lacks: dict[str, str]

    def lines(self, alone: bool) -> Iterator[str]:
        """The row as text; the heads are named unless it is `alone` in its layer."""
        which = "" if alone else f"heads {', '.join(map(str, self.heads))}: "
        kernel = "the model's own attention" if self.kernel is None else f"kernel {self.kernel}"
        yield f"  {which}{self.method} -> {kernel}: {self.why}"
        for name, words in self.lacks.items():
            yield f"    not {name}: {words}"


@dataclass(frozen=True)
class Explanation:
    """What was asked, and `rows`: one for each layer, or for each group of heads in it. Prints as a text."""

    question: str
    rows: tuple[Explained, ...]

    def __str__(self) -> str:
        return "\n".join([self.question, *self._lines()])

    def _lines(self) -> Iterator[str]:
        layers = [(at, list(rows)) for at, rows in groupby(self.rows, key=lambda row: row.layer)]
        for _, run in groupby(layers, key=lambda each: [_content(row) for row in each[1]]):
            alike = list(run)
            (first, rows), last = alike[0], alike[-1][0]
            yield f"layer {first} ({rows[0].name})" if first == last else f"layers {first}-{last}"
            for row in rows:
                yield from row.lines(alone=len(rows) == 1)


def _content(row: Explained) -> tuple[Any, ...]:
    return (row.heads, row.method, row.kernel, row.why, row.lacks)
