"""Statistics over seeds and examples: intervals, tests, corrections, power, calibration."""

from crisp_attention.studies.statistics.bootstrap import Bootstrap, bootstrap_of_score, hierarchical_bootstrap
from crisp_attention.studies.statistics.intervals import (
    SEEDS_NEEDED,
    Interval,
    mean_interval,
    paired_difference,
    seeds_interval,
    standard_error,
)
from crisp_attention.studies.statistics.scores import Score, expected_calibration_error
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
    "hierarchical_bootstrap",
    "holm",
    "mean_interval",
    "paired_difference",
    "paired_p",
    "seeds_interval",
    "standard_error",
]
