"""What the study found, in sentences that are computed from its curves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crisp_attention.sparsefinder import fronts
from crisp_attention.sparsefinder.quality import FULL, Quality

SHORTEST = 0.05  # shorter leads are not listed


@dataclass(frozen=True)
class Results:
    """The tables of a results. `learned` are the variants of Sparsefinder, the other ones are compared with them.

    `table` has a row for every setting, seed, layer and head, `outcome` for every main setting and seed, or none.
    """

    table: pd.DataFrame
    outcome: pd.DataFrame
    learned: tuple[str, ...]
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    fitted_to: int = 0  # examples
    scored_on: int = 0


@dataclass(frozen=True)
class Axis:
    """A score that is drawn against sparsity."""

    name: str
    title: str
    points: pd.DataFrame
    higher: bool = True
    percent: bool = True

    def shown(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.3f}"

    def difference(self, value: float) -> str:
        return f"{100 * value:.1f} points" if self.percent else f"{value:.3f}"

    @property
    def curves(self) -> fronts.Curves:
        return fronts.curves(self.points, self.name, self.higher)


def axes_of(results: Results) -> list[Axis]:
    """Recall, the share of exact rows and, where it was measured, the quality of the model."""
    found = [
        Axis(name, title, fronts.points(results.table, name))
        for name, title in (("recall", "recall"), ("exact", "share of exact rows"))
    ]
    if results.quality is not None:
        own, quality = results.outcome[results.outcome["variant"] != FULL], results.quality
        points = fronts.points(own, "quality")
        found.append(Axis("quality", quality.title, points, quality.higher_is_better, quality.percent))
    return found


def findings(results: Results) -> list[str]:
    """Sentences on the gold graph, who leads where, and how much the seeds matter."""
    gold = results.table["gold_sparsity"].mean()
    found = [
        f"Entmax itself gives weight to {1 - gold:.1%} of the valid pairs: a sparsity of {gold:.1%}, "
        "beyond which no pattern can keep all of them."
    ]
    if results.quality is not None:
        full = results.outcome.set_index("variant").loc[[FULL], "quality"].iloc[0]
        axis = axes_of(results)[-1]
        found.append(f"With entmax of all pairs the {axis.title} is {axis.shown(full)}.")
    for axis in axes_of(results):
        found += [_who_leads(axis), *_learned_or_not(axis, results.learned)]
    spread = (
        results.table.groupby(["variant", "setting", "seed"])["recall"].mean().groupby(level=[0, 1]).std()
    )
    if spread.notna().any():
        found.append(
            f"From one seed to another the recall of a setting varies by {100 * spread.mean():.1f} points (standard "
            f"deviation, mean over settings), at most by {100 * spread.max():.1f}."
        )
    return found


def _who_leads(axis: Axis) -> str:
    told = [
        f"{lead.winner} leads from {lead.low:.0%} to {lead.high:.0%} sparsity"
        for lead in fronts.leads(axis.curves, axis.higher)
        if lead.winner and lead.high - lead.low >= SHORTEST - 1e-9
    ]
    title = f"{axis.title[0].upper()}{axis.title[1:]}"
    if not told:
        least = axis.difference(fronts.TIE)
        return f"{title}: no curve leads by at least {least} over a range of {SHORTEST:.0%} sparsity."
    return f"{title}: {', '.join(told)}; shorter or smaller leads are not listed."


def _learned_or_not(axis: Axis, learned: Sequence[str]) -> Iterator[str]:
    curves = axis.curves
    ours, theirs = ([n for n in curves if (n in learned) == own] for own in (True, False))
    if not ours or not theirs:
        return
    sign = 1 if axis.higher else -1
    ahead = sign * (fronts.best_of(curves, ours, axis.higher) - fronts.best_of(curves, theirs, axis.higher))
    both = ~np.isnan(ahead)
    if not both.any():
        return
    above, below = both & (ahead >= fronts.TIE), both & (ahead <= -fronts.TIE)
    most, least = int(np.nanargmax(ahead)), int(np.nanargmin(ahead))
    words = [
        f"{word} at {where.sum() / both.sum():.0%}" for word, where in (("ahead", above), ("behind", below))
    ]
    if above.any():
        words[0] += f" (by at most {axis.difference(ahead[most])}, at {fronts.GRID[most]:.0%} sparsity)"
    if below.any():
        words[1] += f" (by at most {axis.difference(-ahead[least])}, at {fronts.GRID[least]:.0%} sparsity)"
    yield (
        f"By {axis.title}, the best variant of Sparsefinder against the best of all other patterns, over the "
        f"sparsities that both reach: {' and '.join(words)}."
    )
