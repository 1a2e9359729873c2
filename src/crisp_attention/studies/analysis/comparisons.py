"""The comparisons of a study."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crisp_attention.studies.analysis.answers import Answers
from crisp_attention.studies.analysis.evidence import compare, decide
from crisp_attention.studies.analysis.results import Comparison
from crisp_attention.studies.statistics import SEEDS_NEEDED, clustered_mcnemar, exact_mcnemar
from crisp_attention.studies.study import Configuration


def compare_all(
    configurations: Sequence[Configuration], baseline: Configuration, answers: Answers
) -> dict[str, Comparison]:
    """All comparisons with one baseline, by configuration id, corrected as one family.

    Configurations that share fewer than three seeds with the baseline are left out.
    """
    seeds = {each.id: answers.shared_seeds(each, baseline) for each in configurations}
    compared = [each for each in configurations if len(seeds[each.id]) >= SEEDS_NEEDED]
    correct = [answers.correct(each, seeds[each.id]) for each in compared]
    of_baseline = [answers.correct(baseline, seeds[each.id]) for each in compared]
    family = [compare(ours, its, len(compared)) for ours, its in zip(correct, of_baseline, strict=True)]
    results = {}
    for each, evidence, (p, verdict), ours, its in zip(
        compared, family, decide(family), correct, of_baseline, strict=True
    ):
        results[each.id] = Comparison(
            baseline=baseline,
            seeds=seeds[each.id],
            p=p,
            mcnemar=_mcnemar(ours, its, seeds[each.id]),
            p_mcnemar=clustered_mcnemar(ours.astype(int) - its.astype(int)),
            verdict=verdict,
            **evidence._asdict(),
        )
    return results


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
