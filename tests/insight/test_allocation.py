"""Dividing pairs among heads, against trying everything."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention.insight.profile.targets import allocate, sparsest

many = settings(deadline=None, max_examples=200, derandomize=True)
seeds = st.integers(0, 10**6)


def total(values: np.ndarray, chosen) -> float:
    return values[np.arange(len(values)), list(chosen)].sum()


def best(pairs: np.ndarray, mass: np.ndarray, uniform: int) -> float:
    """The most mass that any choice within the budget keeps."""
    budget = pairs[:, uniform].sum()
    choices = product(range(pairs.shape[1]), repeat=len(pairs))
    return max(total(mass, choice) for choice in choices if total(pairs, choice) <= budget)


def monotone(drawn: np.random.Generator, heads: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves that fall with the sparsity, of any other shape, with steps of any size, some of them none."""
    pairs = drawn.integers(0, 4, (heads, grid)) * drawn.integers(1, 50, (heads, 1)) + 0.0
    pairs[:, -1] += 1
    mass = np.where(pairs > 0, drawn.random((heads, grid)), 0)
    return pairs[:, ::-1].cumsum(axis=1)[:, ::-1], mass[:, ::-1].cumsum(axis=1)[:, ::-1]


def concave(drawn: np.random.Generator, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curves whose steps of the given costs (N, G - 1) add less and less mass a pair."""
    slopes = -np.sort(-drawn.random(costs.shape), axis=1)
    rising = [np.pad(steps.cumsum(axis=1), ((0, 0), (1, 0))) for steps in (costs, costs * slopes)]
    return 1 + rising[0][:, ::-1], rising[1][:, ::-1]


@given(seeds, st.integers(1, 4), st.integers(2, 6), st.data())
@many
def test_on_concave_curves_with_equal_steps_nothing_is_better(seed, heads, grid, data):
    pairs, mass = concave(np.random.default_rng(seed), np.ones((heads, grid - 1)))
    uniform = data.draw(st.integers(0, grid - 1))
    chosen = allocate(pairs, mass, uniform)
    assert total(pairs, chosen) <= pairs[:, uniform].sum()
    assert total(mass, chosen) == pytest.approx(best(pairs, mass, uniform))


@given(seeds, st.integers(1, 4), st.integers(2, 6), st.data())
@many
def test_on_concave_curves_at_most_one_step_is_lost_to_the_best(seed, heads, grid, data):
    drawn = np.random.default_rng(seed)
    pairs, mass = concave(drawn, drawn.integers(1, 30, (heads, grid - 1)) + 0.0)
    uniform = data.draw(st.integers(0, grid - 1))
    chosen = allocate(pairs, mass, uniform)
    step = -np.diff(mass, axis=1)
    assert total(mass, chosen) >= best(pairs, mass, uniform) - step.max() - 1e-9


@given(seeds, st.integers(1, 6), st.integers(1, 7), st.data())
@many
def test_on_any_curves_it_is_within_the_budget_and_not_worse_than_uniform(seed, heads, grid, data):
    pairs, mass = monotone(np.random.default_rng(seed), heads, grid)
    uniform = data.draw(st.integers(0, grid - 1))
    chosen = allocate(pairs, mass, uniform)
    assert total(pairs, chosen) <= pairs[:, uniform].sum()
    assert total(mass, chosen) >= mass[:, uniform].sum()


def test_pairs_go_to_the_head_that_gains_from_them():
    pairs = np.array([[4.0, 3, 2, 1]] * 2)
    mass = np.array([[1.0, 0.99, 0.98, 0.97], [1.0, 0.75, 0.5, 0.25]])
    assert allocate(pairs, mass, uniform=2).tolist() == [3, 1]


def test_where_the_hulls_lead_astray_it_is_uniform():
    # the first head's cheap step gains most per pair, and leaves too little for the second head's long one
    pairs = np.array([[10.0, 1, 0, 0], [20, 11, 10, 0]])
    mass = np.array([[3.0, 2, 0, 0], [20, 19.5, 19, 0]])
    assert allocate(pairs, mass, uniform=2).tolist() == [2, 2]
    assert best(pairs, mass, 2) == 19


def test_the_sparsest_is_the_last_before_the_share_first_falls_below():
    share = np.array([[1, 0.9, 0.8, 0.7], [1, 0.7, 0.9, 0.1], [1, 1, 1, 1], [np.nan] * 4])
    assert sparsest(share, 0.8).tolist() == [2, 0, 3, 0]
