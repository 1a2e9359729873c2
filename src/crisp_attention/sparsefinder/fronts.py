"""Curves of the study: for each variant the best that any of its settings reaches at a sparsity, and where it leads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

GRID = np.round(np.arange(0, 1, 0.01), 2)  # of sparsities
TIE = 0.005
# numbers by variant at every sparsity of the grid; NaN beyond the largest sparsity of its settings
Curves = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lead:
    """From `low` to `high` sparsity one curve is ahead of all others; `winner` "" where none is, by `TIE`."""

    low: float
    high: float
    winner: str


def points(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Variant, setting, sparsity and a score under `value`: means over all else that the table has."""
    return table.groupby(["variant", "setting"], sort=False)[["sparsity", value]].mean().reset_index()


def front(own: pd.DataFrame, value: str, higher: bool = True) -> pd.DataFrame:
    """The points of which no other one is both sparser and better, by sparsity."""
    ordered = own.sort_values(["sparsity", value], ascending=[False, not higher])
    best = ordered[value].cummax() if higher else ordered[value].cummin()
    beaten = best.shift(fill_value=-np.inf if higher else np.inf)
    return ordered[ordered[value] > beaten if higher else ordered[value] < beaten][::-1]


def curves(found: pd.DataFrame, value: str, higher: bool = True) -> Curves:
    """What each variant reaches with at least a sparsity, at those of the grid."""
    result = {}
    for variant, own in found.groupby("variant", sort=False):
        edge = front(own, value, higher)
        at = np.searchsorted(edge["sparsity"].to_numpy(), GRID - 1e-9)
        values = np.append(edge[value].to_numpy(), np.nan)
        result[str(variant)] = values[at]
    return result


def leads(found: Curves, higher: bool = True) -> Iterator[Lead]:
    """Who is ahead, from the lowest sparsity to the highest that two curves reach."""
    sign = 1 if higher else -1
    names = list(found)
    values = sign * np.array([found[name] for name in names])
    compared = np.flatnonzero((~np.isnan(values)).sum(axis=0) > 1)
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), axis=0)[::-1]
    winners = [
        names[order[0, i]] if values[order[0, i], i] - values[order[1, i], i] >= TIE else "" for i in compared
    ]
    first = 0
    for last in range(len(compared)):
        if last + 1 == len(compared) or winners[last + 1] != winners[first]:
            yield Lead(float(GRID[compared[first]]), float(GRID[compared[last]]), winners[first])
            first = last + 1


def best_of(found: Mapping[str, np.ndarray], names: Sequence[str], higher: bool = True) -> np.ndarray:
    """The best of several curves at every sparsity of the grid; NaN where none is defined."""
    sign = 1 if higher else -1
    stacked = sign * np.array([found[name] for name in names])
    best = np.where(np.isnan(stacked), -np.inf, stacked).max(axis=0)
    return sign * np.where(np.isinf(best), np.nan, best)
