import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention.methods.rules import RandomK, TopK
from tests import oracle
from tests.cases import selected

SPARSITIES = st.integers(0, 999).map(lambda n: n / 1000) | st.integers(0, 9).map(lambda n: n / 10)


def scores_and_mask(seed: int, low: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer scores with many ties (more of them the nearer `low` is to 0), and a mask with holes."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(low, 1 - low, (2, 3, 5, 11), generator=draw).float()
    return scores, torch.rand(2, 1, 5, 11, generator=draw) < 0.7


@given(n=st.integers(0, 3000), sparsity=SPARSITIES, min_keep=st.integers(1, 20))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_k_is_the_ceiling_of_the_exact_share_of_the_row(n: int, sparsity: float, min_keep: int) -> None:
    rule = TopK(sparsity, min_keep)
    visible = (torch.arange(3000) < n)[None, None, None]
    assert rule.count(visible).item() == oracle.count(n, sparsity, min_keep)


def test_seven_tenths_of_ten_keys_leave_three() -> None:
    assert math.ceil((1 - 0.7) * 10) == 4  # the trap
    assert selected(TopK(0.7), torch.randn(1, 1, 1, 10)).sum() == 3


@given(seed=st.integers(0, 10**6), low=st.sampled_from([0, -1, -3, -50]), sparsity=SPARSITIES)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_exactly_k_are_kept_and_among_equals_the_lower_index(seed: int, low: int, sparsity: float) -> None:
    scores, visible = scores_and_mask(seed, low)
    kept = selected(TopK(sparsity, min_keep=2), scores, visible)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        seen = set(visible[b, 0, i].nonzero().flatten().tolist())
        wanted = oracle.topk(scores[b, h, i].numpy(), seen, sparsity, min_keep=2)
        assert set(kept[b, h, i].nonzero().flatten().tolist()) == wanted


@given(seed=st.integers(0, 10**6), low=st.sampled_from([0, -2, -50]), pair=st.tuples(SPARSITIES, SPARSITIES))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_raising_the_sparsity_only_removes_pairs(seed: int, low: int, pair: tuple[float, float]) -> None:
    scores, visible = scores_and_mask(seed, low)
    more, fewer = (selected(TopK(sparsity), scores, visible) for sparsity in sorted(pair))
    assert not (fewer & ~more).any()


def test_equal_scores_everywhere_keep_the_first_keys() -> None:
    kept = selected(TopK(0.5), torch.zeros(1, 1, 1, 6))
    assert kept.flatten().tolist() == [True] * 3 + [False] * 3


def test_a_lone_valid_key_is_kept_however_sparse_and_however_low() -> None:
    visible = torch.tensor([False, False, True, False])[None, None, None]
    kept = selected(TopK(0.99, min_keep=3), torch.tensor([9.0, 9.0, -9.0, 9.0])[None, None, None], visible)
    assert kept.equal(visible)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_row_without_visible_keys_keeps_none(sparsity: float) -> None:
    assert not selected(
        TopK(sparsity), torch.randn(1, 1, 2, 4), torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    ).any()


def test_visible_keys_of_minus_infinity_are_still_counted() -> None:
    visible = torch.tensor([False, True, True, True])[None, None, None]
    kept = selected(TopK(0.5), torch.full((1, 1, 1, 4), -torch.inf), visible)
    assert kept.flatten().tolist() == [False, True, True, False]


@pytest.mark.parametrize("place", range(4))
def test_one_nan_in_a_row_keeps_all_that_row_sees(place: int) -> None:
    scores = torch.arange(8.0).reshape(1, 1, 2, 4)
    scores[..., 0, place] = torch.nan
    visible = torch.tensor([True, True, True, True])[None, None, None]
    assert selected(TopK(0.5), scores, visible)[0, 0].tolist() == [[True] * 4, [False, False, True, True]]


def test_nan_outside_the_visible_keys_changes_nothing() -> None:
    scores, visible = torch.tensor([torch.nan, 1, 2, 3]), torch.tensor([False, True, True, True])
    kept = selected(TopK(0.5), scores[None, None, None], visible[None, None, None])
    assert kept.flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("rule", [TopK, RandomK])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1\.0"),
        ({"sparsity": -0.1}, ValueError, r"sparsity must be in \[0, 1\), got -0\.1"),
        ({"sparsity": float("nan")}, ValueError, r"sparsity must be in \[0, 1\), got nan"),
        ({"sparsity": "0.5"}, TypeError, r"sparsity must be a number in \[0, 1\), got '0\.5'"),
        ({"sparsity": True}, TypeError, r"sparsity must be a number in \[0, 1\), got True"),
        ({"min_keep": 0}, ValueError, r"min_keep must be a whole number of at least 1, got 0"),
        ({"min_keep": 1.5}, ValueError, r"min_keep must be a whole number of at least 1, got 1\.5"),
        ({"min_keep": True}, ValueError, r"min_keep must be a whole number of at least 1, got True"),
    ],
)
def test_wrong_options_are_refused_with_expected_and_actual(
    rule: type, options: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        rule(**options)
