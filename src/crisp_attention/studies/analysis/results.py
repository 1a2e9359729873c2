"""The results of a study: one line per configuration, compared with dense and with the random control."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import pandas as pd

from crisp_attention.runs.task.metrics import Metric
from crisp_attention.runs.treatment import Treatment
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import Interval

SEEDS_WANTED = 5


class Verdict(Enum):
    """The verdict on a difference, at a family-wise error of 5 %."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """A configuration minus a baseline, on the seeds that both have, in the unit of the main metric.

    baseline: the configuration subtracted.
    seeds: the seeds that are paired.
    comparisons: how many there are with this baseline.
    difference: paired t-interval of the mean difference over seeds (95 %).
    bootstrap: interval of the hierarchical bootstrap over seeds and examples (95 %).
    p_seeds, p_bootstrap: two-sided p of the two.
    p: the larger of the two, after Holm's correction over the comparisons with this baseline.
    mcnemar: one row per seed: seed, gained, lost (examples that only one of the two gets right), p (exact).
        None where the main metric does not count right answers.
    p_mcnemar: pooled over seeds, with the examples as clusters.
    detectable: the smallest true difference that this study would have detected with a power of 80 %.
    """

    baseline: Configuration
    seeds: tuple[int, ...]
    comparisons: int
    difference: Interval
    bootstrap: Interval
    p_seeds: float
    p_bootstrap: float
    p: float
    mcnemar: pd.DataFrame | None
    p_mcnemar: float | None
    detectable: float
    verdict: Verdict

    @property
    def wider(self) -> tuple[str, Interval]:
        """The wider of the two intervals, with its name."""
        both = ("t", self.difference), ("bootstrap", self.bootstrap)
        return max(both, key=lambda named: named[1].half_width)


@dataclass(frozen=True)
class Line:
    """One configuration: means over its finished runs. Shares are fractions of 1.

    runs: one row per seed: seed, score, loss, ece, train_score, train_loss, gap, achieved_sparsity,
        kept_mass, seconds_per_step, peak_memory_bytes; score, loss and ece are those of the split analysed,
        gap is the training less the validation score; training scores are those of at most 2,000 examples.
    score: mean of the main metric with its t-interval over seeds; None with fewer than three seeds.
    kernels: what computed the attention of the runs, such as `cpu`; empty where that was not recorded.
    diverged: the seeds of runs that ended with a loss that is not finite; they count nowhere else.
    sd: standard deviation over seeds.
    relative_time, relative_memory: seconds per step and peak memory, over those of dense (ratio of means).
    histories: the Trainer's log of every run.
    measurements: what every run measured of its layers and heads, where it did.
    """

    configuration: Configuration
    runs: pd.DataFrame
    score: Interval | None
    kernels: tuple[str, ...]
    diverged: tuple[int, ...]
    sd: float
    relative_time: float
    relative_memory: float
    to_dense: Comparison | None
    to_random: Comparison | None
    histories: tuple[pd.DataFrame, ...]
    measurements: tuple[pd.DataFrame, ...]

    def mean(self, column: str) -> float:
        """The mean of a column of `runs`; NaN without runs."""
        return float(self.runs[column].mean()) if len(self.runs) else float("nan")


@dataclass(frozen=True)
class Analysis:
    """Everything that the report shows; made from the folder once.

    metric: the main metric of the study.
    split: the split of every number: test where it is labelled, else validation.
    labels: of its examples, by their index.
    failed: the reasons of failed runs, by configuration id and seed.
    missing: runs that are still to do, or finished on another machine.
    flips: the examples whose prediction differs most often from dense's of the same seed, most first, 50 at
        most: index, label, flips, pairs, gained, lost, and one column per configuration id with its share of
        flips. The random controls, whose predictions flip arbitrarily, are not counted and have no column. Empty
        where numbers are predicted.
    notes: what a reader must know: failed and missing runs, too few seeds, other versions.
    """

    study: StudyFolder
    metric: Metric
    split: str
    labels: pd.Series
    lines: tuple[Line, ...]
    failed: Mapping[tuple[str, int], str]
    missing: tuple[tuple[Configuration, int], ...]
    flips: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def planned(self) -> int:
        """How many runs the study has when finished."""
        return len(self.lines) * len(self.study.seeds)

    @property
    def words(self) -> str:
        """What the configurations drop, such as keys."""
        return self._said("words")

    @property
    def control_words(self) -> str:
        """What the controls have in place of a choice, such as random keys."""
        return self._said("control_words")

    @property
    def question(self) -> str:
        """What the study asks."""
        asked = {
            line.configuration.treatment.question for line in self.lines if not line.configuration.is_dense
        }
        return asked.pop() if len(asked) == 1 else Treatment.question

    def _said(self, name: str) -> str:
        treatments = [line.configuration.treatment for line in self.lines if not line.configuration.is_dense]
        return " and ".join(dict.fromkeys(getattr(each, name) for each in treatments))
