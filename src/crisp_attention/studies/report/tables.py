"""The report's numbers as tables, for other programs and for the terminal."""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.studies import numbers
from crisp_attention.studies.analysis import Analysis, Comparison, Line, Verdict, answer, statements
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.statistics import Interval

MEANS = (
    "loss",
    "ece",
    "train_score",
    "train_loss",
    "gap",
    "achieved_sparsity",
    "kept_mass",
    "seconds_per_step",
    "peak_memory_bytes",
)
COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.NOT_SHOWN: "default"}


def configurations(analysis: Analysis) -> pd.DataFrame:
    """One row per configuration, shares as fractions of 1: table.csv."""
    return _named(analysis, pd.DataFrame([_row(analysis, line) for line in analysis.lines]))


def runs(analysis: Analysis) -> pd.DataFrame:
    """One row per finished run: runs.csv."""
    frames = [
        line.runs.assign(method=line.configuration.spec, split=analysis.split)
        for line in analysis.lines
        if len(line.runs)
    ]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["method", "split"])
    first = ["method", "split"]
    return _named(analysis, table[[*first, *(name for name in table.columns if name not in first)]])


def _row(analysis: Analysis, line: Line) -> dict[str, Any]:
    configuration = line.configuration
    row = {
        "method": configuration.spec,
        "target_sparsity": configuration.treatment.sparsity,
        "learning_rate": configuration.recipe.learning_rate,
        "epochs": configuration.recipe.epochs,
        "note": configuration.note,
        "split": analysis.split,
        "runs": len(line.runs),
        "diverged": len(line.diverged),
        "kernels": " ".join(line.kernels),
        "score": line.mean("score"),
        "sd": line.sd,
        **_bounds("score", line.score),
    }
    row |= {name: line.mean(name) for name in MEANS}
    row |= {"relative_time": line.relative_time, "relative_memory": line.relative_memory}
    return row | _compared("dense", line.to_dense) | _compared("random", line.to_random)


def _compared(name: str, found: Comparison | None) -> dict[str, Any]:
    return {
        f"to_{name}": found and found.difference.mean,
        **_bounds(f"to_{name}", found.difference if found else None),
        **_bounds(f"to_{name}_bootstrap", found.bootstrap if found else None),
        f"to_{name}_pairs": found and len(found.seeds),
        f"to_{name}_p_seeds": found and found.p_seeds,
        f"to_{name}_p_bootstrap": found and found.p_bootstrap,
        f"to_{name}_p": found and found.p,
        f"to_{name}_p_mcnemar": found and found.p_mcnemar,
        f"to_{name}_detectable": found and found.detectable,
        f"to_{name}_verdict": found and found.verdict.value,
    }


def _bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}


def _named(analysis: Analysis, table: pd.DataFrame) -> pd.DataFrame:
    """Scores under the name of the metric: accuracy, accuracy_low, train_accuracy."""
    scores = ("score", "score_low", "score_high", "train_score")
    return table.rename(columns={each: each.replace("score", analysis.metric.name) for each in scores})


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
    table = Table("configuration", box=box.SIMPLE_HEAD, title=title, title_justify="left")
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
