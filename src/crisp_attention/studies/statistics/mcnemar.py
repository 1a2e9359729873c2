"""McNemar's test: of the answers that only one of two classifiers has right, are as many the one's as the other's?"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test, from the numbers of examples that only one side has right."""
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


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
