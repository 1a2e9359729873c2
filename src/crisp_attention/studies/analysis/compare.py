"""Whether one configuration is better than another, and how certain that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crisp_attention.runs.task.metrics import (
    ACCURACY,
    BINARY_F1,
    MACRO_F1,
    MCC,
    PEARSON,
    RMSE,
    SPEARMAN,
    Metric,
)
from crisp_attention.studies.analysis.read import StudyRead
from crisp_attention.studies.analysis.results import Comparison, Verdict
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import (
    ALPHA,
    SEEDS_NEEDED,
    Bootstrap,
    Interval,
    Score,
    bootstrap_of_score,
    clustered_mcnemar,
    detectable_by_bootstrap,
    detectable_by_t_test,
    exact_mcnemar,
    hierarchical_bootstrap,
    holm,
    mean_interval,
    paired_p,
    scores,
    standard_error,
)
from crisp_attention.studies.statistics.bootstrap import DRAWS

# the scores of resampled examples; those of any other metric are computed draw by draw
RESAMPLED: dict[Metric, Score] = {
    BINARY_F1: scores.binary_f1,
    MACRO_F1: scores.macro_f1,
    MCC: scores.matthews,
    PEARSON: scores.pearson,
    SPEARMAN: scores.spearman,
    RMSE: scores.rmse,
}


class Evidence(NamedTuple):
    """The evidence for a difference between two configurations; the fields are those of `Comparison`."""

    difference: Interval
    bootstrap: Interval
    p_seeds: float
    p_bootstrap: float
    detectable: float


def compare_all(
    configurations: Sequence[Configuration], baseline: Configuration, read: StudyRead
) -> dict[str, Comparison]:
    """All comparisons with one baseline, by configuration id, corrected as one family.

    Configurations that share fewer than three seeds with the baseline are left out.
    """
    seeds = {each.id: read.shared_seeds(each, baseline) for each in configurations}
    compared = [each for each in configurations if len(seeds[each.id]) >= SEEDS_NEEDED]
    pairs = [
        (read.predictions(each, seeds[each.id]), read.predictions(baseline, seeds[each.id]))
        for each in compared
    ]
    labels, metric = read.labels.to_numpy(), read.metric
    family = [
        _compared(read, each, baseline, seeds[each.id], sides, len(compared))
        for each, sides in zip(compared, pairs, strict=True)
    ]
    verdicts = decide(family, metric.higher_is_better)
    results = {}
    for each, evidence, (p, verdict), (ours, its) in zip(compared, family, verdicts, pairs, strict=True):
        right = (ours == labels, its == labels)
        counts_right = metric is ACCURACY
        results[each.id] = Comparison(
            baseline=baseline,
            seeds=seeds[each.id],
            comparisons=len(compared),
            p=p,
            mcnemar=_mcnemar(*right, seeds[each.id]) if counts_right else None,
            p_mcnemar=clustered_mcnemar(right[0].astype(int) - right[1]) if counts_right else None,
            verdict=verdict,
            **evidence._asdict(),
        )
    return results


def _compared(
    read: StudyRead,
    ours: Configuration,
    its: Configuration,
    seeds: tuple[int, ...],
    predictions: tuple[NDArray, NDArray],
    comparisons: int,
) -> Evidence:
    metric, labels = read.metric, read.labels.to_numpy()
    if metric is ACCURACY:
        return compare(predictions[0] == labels, predictions[1] == labels, comparisons)
    if metric.per_example is not None:
        return compare(read.scored(ours, seeds), read.scored(its, seeds), comparisons)
    score = RESAMPLED.get(metric) or scores.repeating(metric.score)
    return compare_scores(score, *predictions, labels=labels, comparisons=comparisons)


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

    The t-test answers for other seeds, the bootstrap for other seeds and examples; both must be significant, so the
    larger p counts. Over the family the error of one false verdict or more is held at 5 % (Holm).
    """
    ps = holm([max(each.p_seeds, each.p_bootstrap) for each in family])
    sign = 1 if higher_is_better else -1
    return [(p, _verdict(p, sign * each.difference.mean)) for p, each in zip(ps, family, strict=True)]


def _verdict(p: float, gain: float) -> Verdict:
    if p >= ALPHA:
        return Verdict.NOT_SHOWN
    return Verdict.BETTER if gain > 0 else Verdict.WORSE


def _mcnemar(
    correct: NDArray[np.bool_], baseline_correct: NDArray[np.bool_], seeds: Sequence[int]
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "seed": seeds,
            "gained": (correct & ~baseline_correct).sum(axis=1),
            "lost": (~correct & baseline_correct).sum(axis=1),
        }
    )
    ps = [exact_mcnemar(gained, lost) for gained, lost in zip(table["gained"], table["lost"], strict=True)]
    return table.assign(p=ps)
