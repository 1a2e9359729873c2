import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crisp_attention.studies.statistics import hierarchical_bootstrap

DIFFERENCES = st.tuples(st.integers(2, 4), st.integers(2, 8)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1))
)


def test_the_draws_are_those_of_all_possible_ones():
    # 2 seeds and 4 examples can be drawn in 2² · 4⁴ ways, all equally likely
    differences = np.array([[1, 0, 1, -1], [1, 1, 0, 0]])
    seeds, examples = list(product(range(2), repeat=2)), list(product(range(4), repeat=4))
    means = np.array([differences[np.ix_(s, e)].mean() for s in seeds for e in examples])
    found = hierarchical_bootstrap(differences)
    assert found.interval.mean == 3 / 8
    assert found.standard_error == pytest.approx(means.std(), rel=0.02)
    # at most 1.5 times the standard error of a share of 10,000 draws, on both sides
    assert found.p == pytest.approx(2 * np.mean(means <= 0), abs=0.012)
    assert found.interval.low in np.quantile(means, [0.02, 0.025, 0.03])
    assert found.interval.high in np.quantile(means, [0.97, 0.975, 0.98])


def test_one_seed_s_variance_is_that_of_the_examples():
    differences = np.random.default_rng(0).choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(1, 500))
    found = hierarchical_bootstrap(differences)
    assert found.standard_error == pytest.approx(differences.std() / 500**0.5, rel=0.02)


def test_the_p_is_never_zero_and_nothing_has_a_p_of_one():
    assert hierarchical_bootstrap(np.ones((3, 10), dtype=int)).p == pytest.approx(2 / 10_001)
    nothing = hierarchical_bootstrap(np.zeros((3, 10), dtype=int))
    assert nothing == ((0, 0, 0), 1, 0)


@given(DIFFERENCES)
@settings(max_examples=25, deadline=None)
def test_swapping_the_sides_mirrors_the_result(differences):
    there, back = (
        hierarchical_bootstrap(differences, draws=5000),
        hierarchical_bootstrap(-differences, draws=5000),
    )
    assert back.interval.mean == -there.interval.mean
    # the draws of a mirrored table are others, so the tails agree up to chance
    assert back.p == pytest.approx(there.p, abs=0.1)
    assert back.standard_error == pytest.approx(there.standard_error, rel=0.2, abs=1e-9)


@given(DIFFERENCES, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_examples_does_not_matter_at_all(differences, random):
    order = random.sample(range(differences.shape[1]), differences.shape[1])
    assert hierarchical_bootstrap(differences[:, order], draws=200) == hierarchical_bootstrap(
        differences, draws=200
    )


def test_it_is_fast():
    differences = np.random.default_rng(0).choice([-1, 0, 1], p=[0.08, 0.82, 0.1], size=(5, 2000))
    begin = time.process_time()
    hierarchical_bootstrap(differences)
    assert time.process_time() - begin < 2
