"""What a study says: one line per configuration, compared with dense and with the random control."""

from dataclasses import dataclass
from enum import Enum

import pandas as pd

from crisp_attention.studies.statistics import Interval
from crisp_attention.studies.study import Configuration, Study


class Verdict(Enum):
    """What can be said of a difference, at a family-wise error of 5 %."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """A configuration minus a baseline, on the seeds that both have. Accuracies are fractions of 1.

    baseline: the configuration subtracted.
    seeds: the seeds that are paired.
    difference: paired t-interval of the mean difference over seeds (95 %).
    bootstrap: interval of the hierarchical bootstrap over seeds and examples (95 %).
    p_seeds, p_bootstrap: two-sided p of the two.
    p: the larger of the two, after Holm's correction over the comparisons with this baseline.
    mcnemar: one row per seed: seed, gained, lost (examples that only one of the two gets right), p (exact).
    p_mcnemar: pooled over seeds, with the examples as clusters.
    detectable: the smallest true difference that this study would have shown with a power of 80 %.
    """

    baseline: Configuration
    seeds: tuple[int, ...]
    difference: Interval
    bootstrap: Interval
    p_seeds: float
    p_bootstrap: float
    p: float
    mcnemar: pd.DataFrame
    p_mcnemar: float
    detectable: float
    verdict: Verdict

    @property
    def words(self) -> str:
        """The verdict in a sentence, in points of accuracy, with the wider of the two intervals, named."""
        if self.detectable == 0 and self.verdict is Verdict.NOT_SHOWN:
            return f"{self.verdict.value}: right and wrong on the same examples as {self.baseline.label}"
        name, wider = max(
            (("t", self.difference), ("bootstrap", self.bootstrap)), key=lambda named: named[1].half_width
        )
        low, high = _points(wider.low), _points(wider.high)
        sentence = f"{self.verdict.value}: {_points(self.difference.mean)} points ({name}: {low} to {high})"
        if self.verdict is Verdict.NOT_SHOWN:
            sentence += f"; this study could have shown ±{100 * self.detectable:.2f}"
        return sentence


@dataclass(frozen=True)
class Line:
    """One configuration: means over its finished runs. Accuracies, sparsity and mass are fractions of 1.

    runs: one row per seed: seed, accuracy, loss, ece, train_accuracy, train_loss, gap, achieved_sparsity,
        kept_mass, seconds_per_step, peak_memory_bytes; accuracy, loss and ece are those of the split analysed,
        gap is the training less the validation accuracy; training accuracy is that of at most 2,000 examples.
    accuracy: mean with its t-interval over seeds; None with fewer than three seeds.
    kernels: what computed the attention of the runs, such as `cpu`; empty where they do not say.
    diverged: the seeds of runs that ended with a loss that is no finite number; they count nowhere else.
    sd: standard deviation over seeds.
    relative_time, relative_memory: seconds per step and peak memory, over those of dense (ratio of means).
    """

    configuration: Configuration
    runs: pd.DataFrame
    accuracy: Interval | None
    kernels: tuple[str, ...]
    diverged: tuple[int, ...]
    sd: float
    relative_time: float
    relative_memory: float
    to_dense: Comparison | None
    to_random: Comparison | None


@dataclass(frozen=True)
class Analysis:
    """Everything that the report shows.

    split: the split of every number: test where it is labelled, else validation.
    flips: the examples whose prediction differs most often from dense's of the same seed, most first, 50 at
        most: index, label, flips, pairs, gained, lost, and one column per configuration id with its share of
        flips. The random controls, which flip a lot and anything, are not counted and have no column.
    notes: what a reader must know: failed and missing runs, too few seeds, other versions.
    """

    study: Study
    split: str
    lines: tuple[Line, ...]
    flips: pd.DataFrame
    notes: tuple[str, ...]


def _points(fraction: float) -> str:
    return f"{round(100 * fraction, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no negative zero
