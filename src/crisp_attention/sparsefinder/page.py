"""A study in its folder: tables, figures, and the page that shows and says what they hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from crisp_attention.drawing.svg import inline, standalone
from crisp_attention.files import check_ours, check_replaced, replacing
from crisp_attention.sparsefinder.figures import pictures
from crisp_attention.sparsefinder.findings import Axis, Results, axes_of, findings
from crisp_attention.sparsefinder.fronts import GRID
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import write

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
OWN = {"study.html", "table.csv", "quality.csv", "figures"}


def check_study(output: Path) -> None:
    """Raise OptionError unless the folder can be made, is empty or holds such a study."""
    check_replaced(output)
    check_ours(output, "a study of Sparsefinder", OWN.__contains__)


def write_study(results: Results, output: Path, facts: Mapping[str, str]) -> None:
    """Write the study into `output`, in place of an earlier one; `facts` say on the page what was studied.

    Raises OptionError if `output` cannot be written or holds other things.
    """
    drawn, variants = pictures(results), list(dict.fromkeys(results.table["variant"]))
    shown = [
        each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))} for each in drawn
    ]
    page = render(
        "study.html",
        package="crisp_attention.sparsefinder",
        model=facts["model"],
        facts=facts,
        findings=findings(results),
        notes=results.notes,
        pictures=shown,
        levels=[f"{level:.0%}" for level in LEVELS],
        summary=[_summary(axis, variants) for axis in axes_of(results)],
        variants=variants,
        has_quality=results.quality is not None,
        learned=results.learned,
    )
    with replacing(output, check_study) as folder:
        write(folder / "study.html", page)
        write(folder / "table.csv", results.table.to_csv(index=False))
        if results.quality is not None:
            outcome = results.outcome.assign(measure=results.quality.title)
            write(folder / "quality.csv", outcome.to_csv(index=False))
        (folder / "figures").mkdir()
        for each in drawn:
            write(folder / "figures" / f"{each.name}.svg", standalone(each.svg))


def _summary(axis: Axis, variants: Sequence[str]) -> dict[str, Any]:
    nothing = np.full(len(GRID), np.nan)  # of variants that the model was not evaluated with
    places = [int(np.searchsorted(GRID, level - 1e-9)) for level in LEVELS]
    rows = {
        variant: [
            (float(curve[at]), f"{100 * curve[at]:.1f}" if axis.percent else axis.shown(curve[at]))
            for at in places
        ]
        for variant, curve in (dict.fromkeys(variants, nothing) | axis.curves).items()
    }
    return {"title": axis.title, "percent": axis.percent, "rows": rows}
