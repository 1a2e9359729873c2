"""Two studies side by side: the configurations that both have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from crisp_attention.studies.analysis import Analysis, Line
from crisp_attention.studies.statistics import SEEDS_NEEDED, Interval, seeds_interval
from crisp_attention.studies.study import Study


@dataclass(frozen=True)
class Both:
    """A configuration in both studies; `difference` is the second's mean accuracy minus the first's.

    interval: its 95 % interval, None with too few runs.
    """

    first: Line
    second: Line
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparing:
    """What two studies say beside each other.

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
    """Compare the configurations that both studies have, by method."""
    reason = _not_paired(first, second)
    how = (
        f"Only means are compared (95 % intervals of Welch): {reason}."
        if reason
        else "Both studies have the same examples and seeds: differences are paired by seed (95 % t-intervals)."
    )
    theirs = {line.configuration.method: line for line in second.lines if len(line.runs)}
    shared = [line for line in first.lines if len(line.runs) and line.configuration.method in theirs]
    both = tuple(_both(line, theirs[line.configuration.method], paired=not reason) for line in shared)
    notes = (how, *_prefixed(first), *_prefixed(second))
    return Comparing(first, second, not reason, both, _differing(first.study, second.study), notes)


def _not_paired(first: Analysis, second: Analysis) -> str:
    """Why runs with the same seed cannot be paired; empty if they can."""
    if first.split != second.split:
        return (
            f"the first study is measured on its {first.split} split, the second on its {second.split} split"
        )
    ours, theirs = (_examples(each) for each in (first, second))
    if ours is None or theirs is None or not ours.equals(theirs):
        return f"the {first.split} examples of the two studies differ"
    if first.study.seeds != second.study.seeds:
        return "the studies have different seeds"
    return ""


def _examples(analysis: Analysis) -> pd.Series | None:
    """The labels by index, of any run."""
    for configuration in analysis.study.configurations:
        for run in analysis.study.finished(configuration):
            return run.predictions(analysis.split)["label"].astype("int64")
    return None


def _both(first: Line, second: Line, paired: bool) -> Both:
    ours, theirs = (line.runs.set_index("seed")["accuracy"] for line in (first, second))
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


def _differing(first: Study, second: Study) -> dict[str, tuple[str, str]]:
    ours, theirs = _recorded(first), _recorded(second)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return {
        name: (_said(ours.get(name)), _said(theirs.get(name)))
        for name in names
        if ours.get(name) != theirs.get(name)
    }


def _recorded(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = {name.replace("_", " "): value for name, value in study.options.items()}
    found["seeds"] = list(study.seeds)
    for each in study.configurations:
        found[f"learning rate of {each.label}"] = each.learning_rate
        found[f"epochs of {each.label}"] = each.epochs
    return found | {f"version of {name}": value for name, value in study.versions.items()}


def _said(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _prefixed(analysis: Analysis) -> list[str]:
    return [f"{analysis.study.name} ({analysis.study.path}): {note}" for note in analysis.notes]
