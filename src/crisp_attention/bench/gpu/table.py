"""The tables of a run on a GPU, in Markdown, from its numbers; before there are any, the same rows without."""

from typing import Any

from crisp_attention.bench.gpu import attention, layers, models
from crisp_attention.bench.gpu.cells import FORWARD, Cell

NOT_MEASURED, NOTHING = "not measured", "–"
FEW = 20  # names that a reason is given with
Results = dict[str, Any]
Rows = dict[tuple[str, str, str], dict[str, Any]]


def planned() -> list[Cell]:
    """All that a run measures, in the order of the tables."""
    asked = [each for plan in attention.PLANS.values() for each in plan]
    asked.sort(key=lambda each: each.shape.length)
    cells = [each.cell(backward) for each in asked for backward in (False, True)]
    cells += [*models.CELLS, *(each.cell for each in layers.LAYERS)]
    order = list(dict.fromkeys(each.group for plan in attention.PLANS.values() for each in plan))
    order += dict.fromkeys(each.group for each in cells)
    return sorted(cells, key=lambda each: order.index(each.group))


def markdown(results: Results | None) -> list[str]:
    """Where and what with, tests, then a table for each group of cells; None: nothing was measured yet."""
    parts = [] if results is None else results["parts"]
    rows: Rows = {
        (row["group"], row["column"], row["direction"]): row
        for part in parts
        for row in part["rows"]
        if "group" in row
    }
    cells = planned()
    lines = _about(results)
    for group in dict.fromkeys(each.group for each in cells):
        own = [each for each in cells if each.group == group]
        if results is None or any((each.group, each.column, each.direction) in rows for each in own):
            lines += ["", *_table(group, own, rows)]
    return lines


def _about(results: Results | None) -> list[str]:
    if results is None:
        return ["**Not measured yet**: no GPU was at hand."]
    found, versions = results["machine"], results["machine"]["versions"]
    names = ("torch", "triton", "transformers")
    lines = [
        f"{found['gpu']}, driver {found['driver']}, CUDA {found['cuda']}, Python {found['python']}, "
        + ", ".join(f"{name} {versions[name]}" for name in names)
        + f"; {found['date']}, commit {str(found['commit'])[:10]}."
        + (" A quick run: indicative only." if results["quick"] else "")
    ]
    if found["not installed"]:
        lines.append(f"Not installed, and so not compared: {', '.join(found['not installed'])}.")
    for part in results["parts"]:
        for row in part["rows"]:
            if "tests" in row:
                counts = [f"{number} {outcome}" for outcome, number in row["tests"].items()]
                lines += ["", f"Tests on the GPU: {', '.join(counts)}.", *_reasons([row])]
    if bad := [f"{part['name']} ({part['problem']})" for part in results["parts"] if part["problem"]]:
        lines += ["", f"**Failed parts**: {'; '.join(bad)}."]
    return lines


def _table(group: str, cells: list[Cell], rows: Rows) -> list[str]:
    """Ratios to the fastest dense contender of the same rounds, its time, and peak memory."""
    columns = list(dict.fromkeys(each.column for each in cells))
    directions = list(dict.fromkeys(each.direction for each in cells))
    names = list(dict.fromkeys(name for each in cells for name in each.contenders))
    heading = "" if directions == [FORWARD] else f": {' / '.join(directions)}"
    head = [
        f"| {group[0].upper()}{group[1:]}{heading} | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]

    def line(title: str, name: str, number: Any) -> str:
        found = (
            " / ".join(number(name, _cell(cells, column, direction), rows) for direction in directions)
            for column in columns
        )
        return f"| {title} | {' | '.join(map(_once, found))} |"

    lines = [*head, line("fastest dense, ms", "", _milliseconds)]
    lines += [line(name, name, _ratio) for name in names]
    own = [row for (of, _, _), row in rows.items() if of == group]
    if any(row["peak_bytes"] for row in own):
        head[0] = f"| Peak memory, MiB on top of what is there before{heading} | {' | '.join(columns)} |"
        lines += ["", *head, *(line(name, name, _mebibytes) for name in names)]
    return [*lines, *_reasons(own)]


def _cell(cells: list[Cell], column: str, direction: str) -> Cell | None:
    return next((each for each in cells if (each.column, each.direction) == (column, direction)), None)


def _row(cell: Cell | None, rows: Rows) -> dict[str, Any] | None:
    return None if cell is None else rows.get((cell.group, cell.column, cell.direction))


def _milliseconds(_: str, cell: Cell | None, rows: Rows) -> str:
    row = _row(cell, rows)
    if row is None or row["yardstick"] is None:
        return NOT_MEASURED
    fastest = next(each for each in row["timed"] if each["name"] == row["yardstick"])
    return f"{1000 * fastest['seconds']['median']:.3g} ({row['yardstick'].removeprefix('dense, ')})"


def _ratio(name: str, cell: Cell | None, rows: Rows) -> str:
    if cell is None or name not in cell.contenders:
        return NOTHING
    if (row := _row(cell, rows)) is None:
        return NOT_MEASURED
    for each in row["timed"]:
        if each["name"] == name:
            median = each["ratio"]["median"]
            return f"{median:.2f}" if median < 10 else f"{median:.0f}"
    return "failed" if any(each["name"] == name for each in row["failed"]) else NOTHING


def _mebibytes(name: str, cell: Cell | None, rows: Rows) -> str:
    row = _row(cell, rows)
    found = None if row is None else row["peak_bytes"].get(name)
    return NOTHING if found is None else f"{found / 2**20:,.0f}"


def _once(text: str) -> str:
    """The same in both directions is written once."""
    parts = text.split(" / ")
    return parts[0] if len(set(parts)) == 1 and not parts[0][0].isdigit() else text


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Why something is missing or failed, and where; and what the reference computed, for want of a kernel."""
    where: dict[str, list[str]] = {}
    for row in rows:
        place = f"{row['column']} {row['direction']}" if "column" in row else "the tests"
        for kind, sign in (("absent", ""), ("failed", "**failed**: ")):
            for reason, names in _by_reason(row.get(kind, [])).items():
                where.setdefault(f"{sign}{names}: {reason}", []).append(place)
        for name, kernels in row.get("kernels", {}).items():
            if "reference" in kernels:
                where.setdefault(f"{name}: computed by the reference, for want of a kernel", []).append(place)
    if not where:
        return []
    lines = [
        f"- {reason}" + ("" if len(places) == len(rows) else f" (at {'; '.join(places)})")
        for reason, places in where.items()
    ]
    return ["", *lines]


def _by_reason(found: list[dict[str, str]]) -> dict[str, str]:
    """Who has each reason; of more than a few, how many and the first."""
    alike: dict[str, list[str]] = {}
    for each in found:
        alike.setdefault(each["reason"], []).append(each["name"])
    return {
        reason: ", ".join(names) if len(names) <= FEW else f"{len(names)}, the first of them {names[0]}"
        for reason, names in alike.items()
    }
