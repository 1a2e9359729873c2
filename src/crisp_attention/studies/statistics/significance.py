"""Tests on seeds and on right and wrong answers, multiple comparisons, and power.

comparisons: how many are tested together; the level is then 5 % over their number, Holm's first step.
standard_error: that of the mean difference; detectable differences have its unit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from crisp_attention.studies.statistics.intervals import standard_error as standard_error_of

ALPHA = 0.05
POWER = 0.8


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of Student's paired t-test: the differences, one per seed, have mean 0.

    Differences that are all 0 have p = 1. If all are the same other number, p is 0, the limit of ever
    smaller variation: these seeds show none, and the test cannot say whether so few could.
    Raises ValueError for fewer than two.
    """
    if len(differences) < 2:
        raise ValueError(f"a paired test needs at least 2 differences, got {len(differences)}")
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] else 1.0
    t = np.mean(differences) / standard_error_of(differences)
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test, from the numbers of examples that only one side has right."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def clustered_mcnemar(differences: NDArray[np.integer]) -> float:
    """Two-sided p of McNemar's test over all seeds, from differences in correctness, (seeds, examples).

    An example's answers under several seeds are not independent; it is one cluster with the sum d of its
    differences, and (Σ d)² / Σ d² is chi-square with one degree of freedom (Durkalski et al. 2003,
    "Analysis of clustered matched-pair data", section 2). The seeds are taken as given. Without any
    difference p is 1.
    """
    clusters = np.sum(differences, axis=0)
    if not clusters.any():
        return 1.0
    return float(stats.chi2.sf(clusters.sum() ** 2 / np.sum(clusters**2), df=1))


def holm(ps: Sequence[float]) -> list[float]:
    """The ps after Holm's step-down correction (Holm 1979), in their order; of none, none."""
    order = np.argsort(ps, kind="stable")
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(np.asarray(ps)[order] * np.arange(len(ps), 0, -1))
    return np.minimum(corrected, 1).tolist()


def detectable_by_t_test(standard_error: float, seeds: int, comparisons: int) -> float:
    """The smallest true difference that a two-sided paired t-test over `seeds` shows with a power of 80 %.

    From the noncentral t distribution.
    """
    critical = -special.stdtrit(seeds - 1, ALPHA / comparisons / 2)
    return float(special.nctdtrinc(seeds - 1, 1 - POWER, critical)) * standard_error


def detectable_by_bootstrap(standard_error: float, comparisons: int) -> float:
    """The same for the two-sided test of a bootstrap whose draws are as good as normal."""
    return float(special.ndtri(POWER) - special.ndtri(ALPHA / comparisons / 2)) * standard_error
