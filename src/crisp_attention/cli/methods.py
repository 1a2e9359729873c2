"""`crisp methods`: every rule, layout and branch with its options."""

from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from crisp_attention.cli.options import MethodsOptions
from crisp_attention.methods import branches, layouts, rules
from crisp_attention.methods.combined import OPTIONS, SPARSE_LINEAR
from crisp_attention.methods.options import options_of
from crisp_attention.methods.sparse_linear import SparseLinear

NARROW = 60  # columns, in fewer of which a table has no room


def run_methods(options: MethodsOptions, console: Console) -> None:
    """Print them to standard output."""
    of_every_rule = {field.name for field in fields(rules.Rule)}
    parts: list[Any] = [*rules.ALL, *layouts.ALL, *branches.ALL]
    rows = [(part.name, options_of(part), part.__doc__) for part in parts]
    output = Console()
    table = Table(
        "method", Column("options", no_wrap=True), Column("what it does", overflow="fold"), show_lines=True
    )
    for name, defaults, doc in [*rows, (SPARSE_LINEAR, OPTIONS, SparseLinear.__doc__)]:
        own = [
            option if default is None else f"{option}={default}"
            for option, default in defaults.items()
            if option not in of_every_rule
        ]
        what = (doc or "").split("\n\n")[0].replace("\n    ", " ")
        if output.width < NARROW:
            output.print(f"{':'.join([name, *own])}\n  {what}", highlight=False, soft_wrap=True, markup=False)
        else:
            table.add_row(name, "\n".join(own), what)
    if table.row_count:
        output.print(table)
    for line in (
        f"A layout ({', '.join(each.name for each in layouts.ALL)}) says where a query may look, a rule what it keeps; "
        "join the two with +. For example: --method topk:sparsity=0.5, --method window:width=9+entmax:alpha=1.5",
        "Every rule has the option temperature=1, by which scores are multiplied: topk:sparsity=0.8:temperature=4 is",
        "sharper; with temperature=learned every head learns its own, starting at 1.",
    ):
        output.print(line, highlight=False, soft_wrap=True, markup=False)
