"""What `crisp profile` says at its end."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from crisp_attention.cli.profile_options import ProfileOptions
from crisp_attention.insight.profile.profile import MASSES, Profile
from crisp_attention.insight.profile.targets import METHODS
from crisp_attention.methods.budgets import Budgets
from crisp_attention.runs.terminal import table_console

SPARSITY = 0.8
TITLE = (
    "Means over heads: dense attention, the mass kept at a target sparsity of 80%\n"
    "(the headings say what it achieved), and the sparsity that keeps 95% of the mass"
)


def report(found: Profile, budgets: Budgets, options: ProfileOptions) -> None:
    """Print the means of each layer, what is safe, what is recommended, and where the files are."""
    console = table_console()
    console.print(_layers(found))
    lines = [
        _safe(mass, found.recommend(mass=mass, method=options.method).expected)
        for mass in dict.fromkeys([*MASSES, *([options.mass] if options.mass else [])])
    ]
    if options.mass is None:
        seen = budgets.expected
        lines.append(
            f"recommended for as many pairs as sparsity {seen['target']['sparsity']:g} keeps in all heads "
            f"({seen['sparsity']:.1%} achieved): {seen['mass']:.1%} of the mass, "
            f"instead of {seen['uniform']['mass']:.1%}"
        )
    lines.append(f"every head, curves and picture are in {options.output}")
    if options.save is not None:
        lines.append(f"the budgets are in {options.save}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _safe(mass: float, seen: Mapping[str, Any]) -> str:
    return (
        f"every head keeps {100 * mass:g}% of its mass with {METHODS[seen['method']]} at an overall sparsity of "
        f"{seen['sparsity']:.1%}; with the same sparsity in all heads, {seen['uniform']['sparsity']:.1%}"
    )


def _layers(found: Profile) -> Table:
    table = Table("layer", title=TITLE, box=box.SIMPLE_HEAD)
    columns = {"entropy": "entropy\n(nats)", "distance": "distance\n(tokens)"}
    for method, word in METHODS.items():
        achieved, _ = found.kept(found.targets.method(method, SPARSITY))
        columns[f"{method}_mass_80"] = f"{word},\nat {achieved:.0%}"
        columns[f"{method}_sparsity_95"] = f"{word},\nfor 95%"
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for layer, means in found.table().groupby("layer")[[*columns]].mean().iterrows():
        cells = [f"{means[each]:{'.1%' if '_' in each else '.2f'}}" for each in columns]
        table.add_row(str(layer), *("" if cell.startswith("nan") else cell for cell in cells))
    return table
