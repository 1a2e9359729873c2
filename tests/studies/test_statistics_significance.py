"""McNemar, Holm, power, calibration."""

import numpy as np
import pytest
from scipy import stats

from crisp_attention.studies.statistics import (
    clustered_mcnemar,
    detectable_by_bootstrap,
    detectable_by_t_test,
    exact_mcnemar,
    expected_calibration_error,
    holm,
)


def test_exact_mcnemar_is_the_toss_of_a_coin():
    # at most 1 of 9: 1 + 9 of 512 outcomes, two-sided
    assert exact_mcnemar(8, 1) == exact_mcnemar(1, 8) == pytest.approx(20 / 512)
    assert exact_mcnemar(0, 0) == exact_mcnemar(5, 5) == 1


def test_clustered_mcnemar_of_one_seed_is_mcnemar_s():
    # Agresti, Categorical Data Analysis, table 10.1: 150 and 86 changed their mind, z² = 64² / 236 = 17.36
    differences = np.array([[1] * 150 + [-1] * 86 + [0] * 1364])
    assert clustered_mcnemar(differences) == pytest.approx(stats.chi2.sf(64**2 / 236, 1))


def test_seeds_that_repeat_each_other_add_nothing_to_clustered_mcnemar():
    once = np.random.default_rng(0).choice([-1, 0, 1], p=[0.05, 0.85, 0.1], size=(1, 300))
    assert clustered_mcnemar(np.repeat(once, 5, axis=0)) == pytest.approx(clustered_mcnemar(once))


def test_clustered_mcnemar_of_a_worked_example():
    # clusters 2, 1, 0, -1: (Σ d)² / Σ d² = 4 / 6
    differences = np.array([[1, 1, 1, -1], [1, 0, -1, 0]])
    assert clustered_mcnemar(differences) == pytest.approx(stats.chi2.sf(4 / 6, 1))
    assert clustered_mcnemar(np.zeros((2, 4), dtype=int)) == 1


def test_clustered_mcnemar_holds_its_level_where_seeds_share_examples():
    random = np.random.default_rng(0)
    hard = random.normal(size=(2000, 2, 1, 300))  # the same for all seeds, its own for each side
    right = hard + 0.5 * random.normal(size=(2000, 2, 4, 300)) < 1
    differences = right[:, 0].astype(int) - right[:, 1]
    ps = np.array([clustered_mcnemar(each) for each in differences])
    assert np.mean(ps < 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))


def test_holm_of_a_worked_example():
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 is raised to the p before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]) == [0.8, 0.8]
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_the_detectable_difference_of_a_worked_example():
    # Cohen 1988, table 2.3: 34 pairs show d = 0.5 at 5 % two-sided with a power of 0.81, 33 with 0.80
    assert detectable_by_t_test(1 / 34**0.5, 34, 1) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("seeds", "comparisons"), [(2, 4), (3, 20), (5, 10), (5, 50)])
def test_a_t_test_shows_the_detectable_difference_in_80_percent(seeds, comparisons):
    true = detectable_by_t_test(1 / seeds**0.5, seeds, comparisons)
    values = np.random.default_rng(0).normal(true, 1, size=(20_000, seeds))
    shown = stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05 / comparisons
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_the_bootstrap_s_detectable_difference_is_the_textbook_s():
    assert detectable_by_bootstrap(1.0, 1) == pytest.approx(1.959964 + 0.841621, rel=1e-6)
    assert detectable_by_bootstrap(2.0, 5) == pytest.approx(2 * (2.575829 + 0.841621), rel=1e-6)


def test_the_calibration_error_of_a_worked_example():
    # confidences 0.9, 0.9 (bin 14), 0.6 (bin 9): gaps 2·0.9 - 1 and 0.6 - 0, over three examples
    sure, unsure = np.log(0.9 / 0.1), np.log(0.6 / 0.4)
    logits, labels = np.array([[sure, 0], [sure, 0], [0, unsure]]), np.array([0, 1, 0])
    assert expected_calibration_error(logits, labels) == pytest.approx((0.8 + 0.6) / 3)


def test_the_calibration_error_against_a_loop_over_bins():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(300, 4)), random.integers(4, size=300)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(error)


def test_a_classifier_that_draws_from_its_confidence_is_calibrated():
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(50_000, 2))
    first = random.random(50_000) < 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    assert expected_calibration_error(logits, np.where(first, 0, 1)) < 0.01
