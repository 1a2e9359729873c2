"""Two studies side by side: the configurations that both have, as a page, a table and on the terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from crisp_attention.errors import OptionError
from crisp_attention.files import replacing
from crisp_attention.studies.analysis import Analysis, Line, analyse
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.report.page import shared_options
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import check, write
from crisp_attention.studies.statistics import SEEDS_NEEDED, Interval, seeds_interval


@dataclass(frozen=True)
class Both:
    """A configuration in both studies; `difference` is the second's mean score minus the first's.

    interval: its 95 % interval, None with too few runs.
    """

    first: Line
    second: Line
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparing:
    """The results of two studies next to each other.

    paired: whether differences are paired by seed; else they are between means (Welch).
    options: what differs, by name: the first study's value and the second's.
    notes: what a reader must know, first how the studies are compared.
    """

    first: Analysis
    second: Analysis
    paired: bool
    both: tuple[Both, ...]
    options: dict[str, tuple[str, str]]
    notes: tuple[str, ...]


def compare(first: Analysis, second: Analysis) -> Comparing:
    """Compare the configurations that both studies have, by spec.

    Raises OptionError if the studies are judged by different metrics.
    """
    if first.metric != second.metric:
        raise OptionError(
            f"{first.study.path} is judged by {first.metric.title}, {second.study.path} by {second.metric.title}: "
            f"expected studies of one metric"
        )
    reason = _not_paired(first, second)
    how = (
        f"Only means are compared (Welch’s 95 % intervals): {reason}."
        if reason
        else "Both studies have the same examples and seeds: differences are paired by seed (95 % t-intervals)."
    )
    theirs = {line.configuration.spec: line for line in second.lines if len(line.runs)}
    shared = [line for line in first.lines if len(line.runs) and line.configuration.spec in theirs]
    both = tuple(_both(line, theirs[line.configuration.spec], paired=not reason) for line in shared)
    notes = (how, *_prefixed(first), *_prefixed(second))
    return Comparing(first, second, not reason, both, _differing(first.study, second.study), notes)


def _not_paired(first: Analysis, second: Analysis) -> str:
    """Why runs with the same seed cannot be paired; empty if they can."""
    if first.split != second.split:
        return (
            f"the first study is measured on its {first.split} split, the second on its {second.split} split"
        )
    if not len(first.labels) or not first.labels.equals(second.labels):
        return f"the {first.split} examples of the two studies differ"
    if first.study.seeds != second.study.seeds:
        return "the studies have different seeds"
    return ""


def _both(first: Line, second: Line, paired: bool) -> Both:
    ours, theirs = (line.runs.set_index("seed")["score"] for line in (first, second))
    if paired:
        differences = (theirs - ours).dropna()
        return Both(first, second, float(differences.mean()), seeds_interval(differences.tolist()))
    difference = float(theirs.mean() - ours.mean())
    return Both(first, second, difference, _welch(ours.to_numpy(), theirs.to_numpy(), difference))


def _welch(ours: np.ndarray, theirs: np.ndarray, difference: float) -> Interval | None:
    if min(len(ours), len(theirs)) < SEEDS_NEEDED:
        return None
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return Interval(difference, difference, difference)  # scipy divides by the variance
    bounds = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
    return Interval(difference, float(bounds.low), float(bounds.high))


def _differing(first: StudyFolder, second: StudyFolder) -> dict[str, tuple[str, str]]:
    ours, theirs = _recorded(first), _recorded(second)
    return {
        name: (ours.get(name, "not given"), theirs.get(name, "not given"))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    }


def _recorded(study: StudyFolder) -> dict[str, str]:
    found = shared_options(study) | {"seeds": " ".join(map(str, study.seeds))}
    for each in study.configurations:
        found[f"learning rate of {each.label}"] = str(each.recipe.learning_rate)
        found[f"epochs of {each.label}"] = str(each.recipe.epochs)
    return found | {f"version of {name}": value for name, value in study.versions.items()}


def _prefixed(analysis: Analysis) -> list[str]:
    return [f"{analysis.study.name} ({analysis.study.path}): {note}" for note in analysis.notes]


def write_comparison(first: Path, second: Path, output: Path) -> Comparing:
    """Compare two studies, write the comparison into `output` in place of an earlier report, and return it.

    Raises OptionError if a study is missing, or `output` cannot be written or holds other things.
    """
    check(output)
    found = compare(*(analyse(StudyFolder.read(each)) for each in (first, second)))
    values: dict[str, Any] = {
        "comparing": found,
        "unit": Unit(found.first.metric),
        "lines": [(each, *_means(each)) for each in found.both],
    }
    with replacing(output, check) as folder:
        write(folder / "report.html", render("comparison.html", **values))
        write(folder / "summary.md", render("comparison.md", **values))
        write(folder / "table.csv", _table(found).to_csv(index=False))
    return found


def show_comparison(found: Comparing, console: Console) -> None:
    """Print the table of the comparison, and what differs between the studies."""
    unit = Unit(found.first.metric)
    title = unit.metric.title
    table = Table("attention", title, f"{title} of the second", "second − first", box=box.SIMPLE_HEAD)
    for each in found.both:
        ours, theirs = _means(each)
        table.add_row(
            escape(each.first.configuration.label),
            f"{unit.score(ours)} {unit.plus_minus(each.first.score)}",
            f"{unit.score(theirs)} {unit.plus_minus(each.second.score)}",
            f"{unit.difference(each.difference)} \\[{unit.span(each.interval)}]",
        )
    console.print(table)
    for name, (before, after) in found.options.items():
        console.print(f"{name}: {before} / {after}", markup=False, highlight=False, soft_wrap=True)


def _means(each: Both) -> tuple[float, float]:
    return each.first.mean("score"), each.second.mean("score")


def _table(found: Comparing) -> pd.DataFrame:
    rows = [
        {
            "method": each.first.configuration.spec,
            "first": ours,
            "second": theirs,
            "difference": each.difference,
            "low": each.interval and each.interval.low,
            "high": each.interval and each.interval.high,
            "paired": found.paired,
            "runs_first": len(each.first.runs),
            "runs_second": len(each.second.runs),
        }
        for each in found.both
        for ours, theirs in [_means(each)]
    ]
    return pd.DataFrame(rows)
