"""The map itself; the `entmax` package is its authors' own code."""

import entmax as published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention.methods.rules.entmax import alpha_entmax
from tests import oracle
from tests.cases import normal

EXACT = [1.5, 2.0]
OTHERS = [1.01, 1.3, 1.7, 2.5, 4.0]
SCORES = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
PUBLISHED = {1.5: published.entmax15, 2.0: published.sparsemax}


def all_of(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def entmax(scores: list[float] | Tensor, alpha: float | Tensor) -> Tensor:
    scores = torch.as_tensor(scores, dtype=torch.float64)
    return alpha_entmax(scores, all_of(scores), alpha)


def rows(seed: int = 0, *, spread: float = 2.0) -> Tensor:
    return spread * normal(20, 30, seed=seed)


@given(SCORES, st.sampled_from([*EXACT, 1.25]) | st.floats(1.01, 2))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_it_is_what_a_long_bisection_finds(scores: list[float], alpha: float) -> None:
    wanted = torch.tensor(oracle.entmax(scores, alpha), dtype=torch.float64)
    torch.testing.assert_close(entmax(scores, alpha), wanted, rtol=0, atol=1e-12)


@given(SCORES, st.sampled_from(EXACT) | st.floats(1.01, 10))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_it_is_a_distribution_and_solves_its_equation(scores: list[float], alpha: float) -> None:
    """For some τ, (α - 1) · score - p ** (α - 1) is τ where p > 0, and at most τ elsewhere."""
    p = entmax(scores, alpha)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (p >= 0).all()
    rest = torch.tensor(scores, dtype=torch.float64) * (alpha - 1) - p ** (alpha - 1)
    tau = rest[p > 0]
    assert tau.max() - tau.min() < 1e-10
    assert (rest[p == 0] <= tau.max() + 1e-10).all()


@pytest.mark.parametrize("alpha", EXACT)
@pytest.mark.parametrize("spread", [0.001, 1.0, 5.0, 1e4])
def test_bisection_and_the_exact_solution_agree(alpha: float, spread: float) -> None:
    scores = rows(spread=spread)
    bisected = entmax(scores, torch.tensor(alpha, dtype=torch.float64))
    torch.testing.assert_close(bisected, entmax(scores, alpha), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [*EXACT, *OTHERS])
def test_it_agrees_with_the_published_code_in_value_and_gradient(alpha: float) -> None:
    slopes, results, gradients = normal(20, 30, seed=9), [], []
    for function in (
        entmax,
        lambda x, a: PUBLISHED[a](x) if a in PUBLISHED else published.entmax_bisect(x, a),
    ):
        scores = rows().requires_grad_()
        results.append(function(scores, alpha))
        (results[-1] * slopes).sum().backward()
        gradients.append(scores.grad)
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-7)


def test_the_gradient_of_alpha_agrees_with_the_published_code() -> None:
    gradients = []
    for function in (entmax, published.entmax_bisect):
        alpha = torch.linspace(1.1, 1.9, 20, dtype=torch.float64)[:, None].requires_grad_()
        (function(rows(), alpha) * normal(20, 30, seed=9)).sum().backward()
        gradients.append(alpha.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", [*EXACT, *OTHERS])
def test_gradients_are_right_for_scores(alpha: float) -> None:
    scores, keep = rows()[:4, :8].clone().requires_grad_(), torch.ones(4, 8, dtype=torch.bool).tril(4)
    assert torch.autograd.gradcheck(lambda x: alpha_entmax(x, keep, alpha), scores, fast_mode=True)


def test_gradients_are_right_for_scores_and_an_alpha_of_each_head() -> None:
    scores = normal(2, 3, 4, 6).requires_grad_()
    alpha = torch.tensor([1.05, 1.5, 1.95], dtype=torch.float64).reshape(3, 1, 1).requires_grad_()
    keep = torch.ones(4, 6, dtype=torch.bool).tril(1)
    keep[2] = False
    assert torch.autograd.gradcheck(lambda x, a: alpha_entmax(x, keep, a), (scores, alpha), fast_mode=True)


@pytest.mark.parametrize("alpha", [*EXACT, 1.3, 4.0, torch.tensor(1.5)])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_a_row_that_keeps_nothing_gives_zeros_and_no_gradient(alpha: float | Tensor, size: float) -> None:
    scores = (size * torch.randn(2, 5)).requires_grad_()
    weights = alpha_entmax(scores, torch.tensor([[True], [False]]).expand(2, 5), alpha)
    (weights * torch.randn(2, 5)).sum().backward()
    assert (weights[1] == 0).all()
    assert weights[0].sum().item() == pytest.approx(1, abs=1e-6)
    assert (scores.grad[1] == 0).all()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("alpha", [*EXACT, *OTHERS, 10.0])
def test_large_scores_equal_scores_and_a_single_key(alpha: float) -> None:
    assert entmax([1e4, 1e4 - 200, -1e4], alpha).tolist() == [1, 0, 0]
    torch.testing.assert_close(entmax([-3e3] * 7, alpha), torch.full((7,), 1 / 7, dtype=torch.float64))
    assert entmax([-1e4], alpha).tolist() == [1]


@pytest.mark.parametrize("alpha", [*EXACT, *OTHERS])
def test_keys_outside_the_support_may_as_well_not_be_there(alpha: float) -> None:
    for scores in rows(spread=100 if alpha == 1.01 else 5):
        whole = entmax(scores, alpha)
        support = whole > 0
        assert 0 < support.sum() < 30
        torch.testing.assert_close(entmax(scores[support], alpha), whole[support], rtol=1e-12, atol=1e-14)
        shown = alpha_entmax(scores, support, alpha)
        torch.testing.assert_close(shown, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [*EXACT, *OTHERS])
def test_adding_a_number_to_a_row_changes_nothing(alpha: float) -> None:
    scores = torch.randint(-40, 40, (20, 9)) / 8
    assert entmax(scores + 1000, alpha).equal(entmax(scores, alpha))


def test_a_greater_alpha_leaves_fewer_keys() -> None:
    counts = [(entmax(rows(spread=0.3), alpha) > 0).sum().item() for alpha in (1.01, 1.5, 1.7, 2.0, 2.5, 4.0)]
    assert counts[0] == 20 * 30
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)


@pytest.mark.parametrize("alpha", [*EXACT, 1.3, torch.tensor(1.5)])
def test_nan_among_the_kept_reaches_the_row_and_elsewhere_does_not(alpha: float | Tensor) -> None:
    scores = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan, 1.0, 2.0]])
    weights = alpha_entmax(scores, torch.tensor([[True, True, True], [False, True, True]]), alpha)
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()
    assert weights[1, 0] == 0


@pytest.mark.parametrize("alpha", [*EXACT, 1.3, torch.tensor(1.5)])
def test_keys_of_minus_infinity_get_no_weight(alpha: float | Tensor) -> None:
    scores = torch.tensor([-torch.inf, 0.5, -torch.inf, 0.5])
    assert alpha_entmax(scores, all_of(scores), alpha).tolist() == [0, 0.5, 0, 0.5]
