"""The table of decoders, generation, padding and other rows in docs/performance.md, from the numbers that are kept.

python -m benchmarks.cases_table            # prints it
python -m benchmarks.cases_table --write    # puts it into the page
"""

import json
import sys
from pathlib import Path

from crisp_attention.bench.bars import SITUATIONS

DOCS = Path(__file__).parents[1] / "docs"
PAGE, KEPT = DOCS / "performance.md", DOCS / "studies" / "bench" / "cases.json"
HEAD = ["| case | tokens | forward / forward + backward | bar |", "|---|---|---|---|"]


def table() -> tuple[list[str], int, int]:
    """The lines of the table, how many of its bars hold, and how many there are."""
    ratios: dict[tuple[str, str], dict[bool, float]] = {}
    for each in json.loads(KEPT.read_text(encoding="utf-8"))["situated"]:
        ours = each["timed"][-1]["ratio"]["median"]
        ratios.setdefault((each["row"], each["size"]), {})[each["backward"]] = ours
    lines, hold, bars = list(HEAD), 0, 0
    for (row, size), found in ratios.items():
        allowed = SITUATIONS[row, size]
        cells = []
        for backward, ratio in sorted(found.items()):
            bar = allowed[backward]
            holds = bar is None or ratio <= bar
            bars, hold = bars + (bar is not None), hold + (bar is not None and holds)
            cells.append(f"{ratio:.2f}" + " (missed)" * (not holds))
        own = [f"{bar:g}" for bar in dict.fromkeys(allowed) if bar is not None]
        lines.append(f"| {row} | {size} | {' / '.join(cells)} | ≤ {' / '.join(own)} |")
    return lines, hold, bars


def written(page: str) -> str:
    """The page with this table in place of the one it has."""
    before, rest = page.split(HEAD[0])
    words = before.rsplit(" of the ", 1)[0].rsplit(maxsplit=1)[0]
    lines, hold, bars = table()
    after = rest.split("\n\n", 1)[1]
    return f"{words} {hold} of the {bars} bars hold:\n\n" + "\n".join(lines) + "\n\n" + after


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        lines, hold, bars = table()
        print(*lines, f"{hold} of {bars} bars hold", sep="\n")
