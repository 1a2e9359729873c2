"""Whether one configuration is better than another, from who is right where: no files, no names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_attention.studies.analysis.results import Verdict
from crisp_attention.studies.statistics import (
    ALPHA,
    Bootstrap,
    Interval,
    Score,
    bootstrap_of_score,
    detectable_by_bootstrap,
    detectable_by_t_test,
    hierarchical_bootstrap,
    holm,
    mean_interval,
    paired_p,
    standard_error,
)
from crisp_attention.studies.statistics.bootstrap import DRAWS


class Evidence(NamedTuple):
    """What speaks for a difference of two configurations; the fields are those of `Comparison`."""

    difference: Interval
    bootstrap: Interval
    p_seeds: float
    p_bootstrap: float
    detectable: float


def compare(ours: NDArray, its: NDArray, comparisons: int, draws: int = DRAWS) -> Evidence:
    """Compare a configuration with a baseline by a score of each example, such as whether it is right.

    ours, its: (seeds, examples), with at least two seeds.
    comparisons: how many are made with this baseline, for the power. A verdict needs the t-test and the
    bootstrap, so a difference is detectable if it is for both.
    """
    if ours.dtype == bool:  # whole numbers: equal ones are equal
        ours, its = ours.astype(np.int8), its.astype(np.int8)
    differences = ours - its
    totals = differences.sum(axis=1)
    bootstrap = hierarchical_bootstrap(differences, draws=draws)
    return _evidence(totals, totals / differences.shape[1], bootstrap, comparisons)


def compare_scores(
    score: Score, ours: NDArray, its: NDArray, labels: NDArray, comparisons: int, draws: int = DRAWS
) -> Evidence:
    """The same by a score of all examples at once, such as F1; `ours` and `its` are predictions."""
    everyone = np.ones((len(labels), 1))
    by_seed = (score(ours, labels, everyone) - score(its, labels, everyone))[:, 0]
    bootstrap = bootstrap_of_score(score, ours, its, labels, draws=draws)
    return _evidence(by_seed, by_seed, bootstrap, comparisons)


def _evidence(tested: NDArray, by_seed: NDArray, bootstrap: Bootstrap, comparisons: int) -> Evidence:
    return Evidence(
        difference=mean_interval(by_seed.tolist()),
        bootstrap=bootstrap.interval,
        p_seeds=paired_p(tested.tolist()),
        p_bootstrap=bootstrap.p,
        detectable=max(
            detectable_by_t_test(standard_error(by_seed), len(by_seed), comparisons),
            detectable_by_bootstrap(bootstrap.standard_error, comparisons),
        ),
    )


def decide(family: Sequence[Evidence], higher_is_better: bool = True) -> list[tuple[float, Verdict]]:
    """The corrected p and the verdict of every comparison with one baseline.

    The t-test answers for other seeds, the bootstrap for other seeds and examples; both must speak, so the
    larger p counts. Over the family the error of one false verdict or more is held at 5 % (Holm).
    """
    ps = holm([max(each.p_seeds, each.p_bootstrap) for each in family])
    sign = 1 if higher_is_better else -1
    return [(p, _verdict(p, sign * each.difference.mean)) for p, each in zip(ps, family, strict=True)]


def _verdict(p: float, gain: float) -> Verdict:
    if p >= ALPHA:
        return Verdict.NOT_SHOWN
    return Verdict.BETTER if gain > 0 else Verdict.WORSE
