import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crisp_attention as crisp
from crisp_attention import Dense, Threshold
from tests import oracle
from tests.cases import self_attention
from tests.methods.rules.rows import INFINITE, NAN, kept

SCORES = st.lists(st.integers(-64, 64).map(lambda n: n / 8), min_size=1, max_size=14)
EPSILONS = st.floats(0.001, 1)


@given(SCORES, EPSILONS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_it_keeps_the_keys_whose_weight_is_that_share_of_the_largest(scores, epsilon, drawn) -> None:
    visible = [drawn.random() < 0.7 for _ in scores]
    wanted = oracle.threshold(np.array(scores), set(np.flatnonzero(visible).tolist()), epsilon)
    assert kept(Threshold(epsilon), scores, visible) == sorted(wanted)


@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("top", [0.0, 3.0, -7.25])
def test_a_key_exactly_at_the_threshold_is_kept_and_the_next_below_is_not(epsilon: float, top: float) -> None:
    edge = torch.tensor(top) + math.log(epsilon)
    below = torch.nextafter(edge, torch.tensor(-INFINITE))
    assert kept(Threshold(epsilon), [edge.item(), top, below.item()]) == [0, 1]


def test_one_keeps_the_largest_and_its_equals() -> None:
    assert kept(Threshold(1), [2.0, 5.0, 4.999, 5.0]) == [1, 3]


def test_zero_is_dense() -> None:
    assert kept(Threshold(0), [0.0, -INFINITE, 5.0], [True, True, False]) == [0, 1]
    q, k, v = self_attention()
    assert crisp.attention(q, k, v, Threshold(0.0)).equal(crisp.attention(q, k, v, Dense()))


@given(SCORES, st.tuples(EPSILONS, EPSILONS))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_greater_epsilon_only_removes_keys(scores: list[float], pair: tuple[float, float]) -> None:
    more, fewer = (set(kept(Threshold(epsilon), scores)) for epsilon in sorted(pair))
    assert fewer <= more


@given(SCORES, EPSILONS, SCORES)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_further_keys_below_the_largest_change_nothing(scores, epsilon, others) -> None:
    others = [min(each, max(scores)) for each in others]
    chosen = kept(Threshold(epsilon), scores)
    assert [j for j in kept(Threshold(epsilon), scores + others) if j < len(scores)] == chosen


def test_a_row_that_sees_nothing_keeps_nothing() -> None:
    assert kept(Threshold(0.5), [1.0, 2.0], [False, False]) == []


@pytest.mark.parametrize("place", range(3))
def test_one_nan_in_a_row_keeps_all_that_row_sees(place: int) -> None:
    scores = [9.0, 0.0, 1.0, 50.0]
    scores[place] = NAN
    assert kept(Threshold(0.5), scores, [True, True, True, False]) == [0, 1, 2]


def test_nan_outside_the_visible_keys_changes_nothing() -> None:
    assert kept(Threshold(0.5), [NAN, 0.0, 5.0], [False, True, True]) == [2]


def test_infinite_scores_leave_a_row_that_is_not_empty() -> None:
    assert kept(Threshold(0.5), [0.0, INFINITE, 2.0]) == [1]
    assert kept(Threshold(0.5), [-INFINITE, 3.0, -INFINITE]) == [1]
    assert kept(Threshold(0.5), [-INFINITE, -INFINITE]) == [0, 1]


@pytest.mark.parametrize(
    ("epsilon", "error", "message"),
    [
        (-0.1, ValueError, r"epsilon must be in \[0, 1\], got -0\.1"),
        (1.5, ValueError, r"epsilon must be in \[0, 1\], got 1\.5"),
        (NAN, ValueError, r"epsilon must be in \[0, 1\], got nan"),
        ("0.1", TypeError, r"epsilon must be a number in \[0, 1\], got '0\.1'"),
        (None, TypeError, r"epsilon must be a number in \[0, 1\], got None"),
        (True, TypeError, r"epsilon must be a number in \[0, 1\], got True"),
    ],
)
def test_a_wrong_epsilon_is_refused_with_expected_and_actual(epsilon, error, message) -> None:
    with pytest.raises(error, match=message):
        Threshold(epsilon)
