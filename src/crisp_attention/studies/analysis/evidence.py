"""Whether one configuration is better than another, from who is right where: no files, no names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crisp_attention.studies.analysis.results import Verdict
from crisp_attention.studies.statistics import (
    Interval,
    detectable_by_bootstrap,
    detectable_by_t_test,
    hierarchical_bootstrap,
    holm,
    mean_interval,
    paired_p,
    standard_error,
)
from crisp_attention.studies.statistics.bootstrap import DRAWS
from crisp_attention.studies.statistics.power import ALPHA


class Evidence(NamedTuple):
    """What speaks for a difference of two configurations; the fields are those of `Comparison`."""

    difference: Interval
    bootstrap: Interval
    p_seeds: float
    p_bootstrap: float
    detectable: float


def compare(
    correct: NDArray[np.bool_], baseline_correct: NDArray[np.bool_], comparisons: int, draws: int = DRAWS
) -> Evidence:
    """Compare a configuration with a baseline: both (seeds, examples), with at least two seeds.

    comparisons: how many are made with this baseline, for the power. A verdict needs the t-test and the
    bootstrap, so a difference is detectable if it is for both.
    """
    differences = correct.astype(np.int8) - baseline_correct.astype(np.int8)
    seeds, examples = differences.shape
    by_seed = differences.sum(axis=1)  # whole numbers: equal ones are equal
    bootstrap = hierarchical_bootstrap(differences, draws=draws)
    return Evidence(
        difference=mean_interval((by_seed / examples).tolist()),
        bootstrap=bootstrap.interval,
        p_seeds=paired_p(by_seed.tolist()),
        p_bootstrap=bootstrap.p,
        detectable=max(
            detectable_by_t_test(standard_error(by_seed / examples), seeds, comparisons),
            detectable_by_bootstrap(bootstrap.standard_error, comparisons),
        ),
    )


def decide(family: Sequence[Evidence]) -> list[tuple[float, Verdict]]:
    """The corrected p and the verdict of every comparison with one baseline.

    The t-test answers for other seeds, the bootstrap for other seeds and examples; both must speak, so the
    larger p counts. Over the family the error of one false verdict or more is held at 5 % (Holm).
    """
    ps = holm([max(each.p_seeds, each.p_bootstrap) for each in family])
    return [(p, _verdict(p, each.difference.mean)) for p, each in zip(ps, family, strict=True)]


def _verdict(p: float, mean: float) -> Verdict:
    if p >= ALPHA:
        return Verdict.NOT_SHOWN
    return Verdict.BETTER if mean > 0 else Verdict.WORSE
