"""Statistics over seeds and examples: intervals, tests, corrections, power, calibration."""

from crisp_attention.studies.statistics.bootstrap import Bootstrap, hierarchical_bootstrap
from crisp_attention.studies.statistics.calibration import expected_calibration_error
from crisp_attention.studies.statistics.intervals import (
    SEEDS_NEEDED,
    Interval,
    mean_interval,
    paired_difference,
    paired_p,
    seeds_interval,
    standard_error,
)
from crisp_attention.studies.statistics.mcnemar import clustered_mcnemar, exact_mcnemar
from crisp_attention.studies.statistics.multiplicity import holm
from crisp_attention.studies.statistics.power import detectable_by_bootstrap, detectable_by_t_test

__all__ = [
    "SEEDS_NEEDED",
    "Bootstrap",
    "Interval",
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
