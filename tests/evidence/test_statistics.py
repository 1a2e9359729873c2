import numpy as np
import pytest

from crisp_attention.evidence.statistics import mean_interval, paired_difference


def test_the_interval_of_a_worked_example():
    # Student's t for 4 degrees of freedom is 2.776; the standard error of 1..5 is 0.7071
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.776445 * 0.70710678, rel=1e-6)


def test_the_interval_covers_the_true_mean_at_its_level():
    random = np.random.default_rng(0)
    intervals = [mean_interval(random.normal(7, 2, size=5).tolist()) for _ in range(2000)]
    assert np.mean([i.low <= 7 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.015)


def test_pairing_removes_what_the_pairs_share():
    shared = np.random.default_rng(1).normal(0, 10, size=6)
    gap = paired_difference((shared + 1).tolist(), shared.tolist())
    assert (gap.low, gap.mean, gap.high) == pytest.approx((1, 1, 1))


def test_too_few_or_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
