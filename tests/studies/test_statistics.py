import numpy as np
import pytest

from crisp_attention.studies.statistics import mean_interval, paired_difference, paired_p


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


def test_the_paired_test_of_a_worked_example():
    # mean 3, standard error 0.7071: t = 4.2426 with 4 degrees of freedom
    assert paired_p([1, 2, 3, 4, 5]) == pytest.approx(0.01324, abs=1e-5)


def test_the_paired_test_agrees_with_its_interval():
    # p at the level of an interval that ends at 0
    values = np.random.default_rng(0).normal(1, 1, 5).tolist()
    p = paired_p(values)
    assert mean_interval(values, confidence=1 - p).low == pytest.approx(0, abs=1e-12)


def test_seeds_that_do_not_vary_have_a_p_as_well():
    assert paired_p([0, 0, 0]) == 1
    assert paired_p([2, 2, 2]) == 0


def test_a_paired_test_needs_two_seeds():
    with pytest.raises(ValueError, match="at least 2 differences, got 1"):
        paired_p([1.0])
