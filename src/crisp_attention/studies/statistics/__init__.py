"""Statistics over seeds and examples: intervals, tests, corrections, power, calibration."""

from crisp_attention.studies.statistics.bootstrap import Bootstrap, bootstrap_of_score, hierarchical_bootstrap
from crisp_attention.studies.statistics.calibration import expected_calibration_error
from crisp_attention.studies.statistics.intervals import (
    SEEDS_NEEDED,
    Interval,
    mean_interval,
    paired_difference,
    seeds_interval,
    standard_error,
)
from crisp_attention.studies.statistics.scores import Score, f1, matthews, pearson, repeating, rmse, spearman
from crisp_attention.studies.statistics.significance import (
    ALPHA,
    clustered_mcnemar,
    detectable_by_bootstrap,
    detectable_by_t_test,
    exact_mcnemar,
    holm,
    paired_p,
)

__all__ = [
    "ALPHA",
    "SEEDS_NEEDED",
    "Bootstrap",
    "Interval",
    "Score",
    "bootstrap_of_score",
    "clustered_mcnemar",
    "detectable_by_bootstrap",
    "detectable_by_t_test",
    "exact_mcnemar",
    "expected_calibration_error",
    "f1",
    "hierarchical_bootstrap",
    "holm",
    "matthews",
    "mean_interval",
    "paired_difference",
    "paired_p",
    "pearson",
    "repeating",
    "rmse",
    "seeds_interval",
    "spearman",
    "standard_error",
]
