import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from crisp_attention.methods.ranking import compact, keep_largest, share_count, sort_rows
from tests import oracle


def drawn(seed: int, low: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers, -inf among them, which of them are visible, and a count for every row."""
    generator = torch.Generator().manual_seed(seed)
    ranked = torch.randint(low, 1 - low, (2, 3, 4, 9), generator=generator).float()
    ranked[torch.rand(ranked.shape, generator=generator) < 0.1] = -torch.inf
    visible = torch.rand(2, 1, 4, 9, generator=generator) < 0.7
    seen = visible.sum(-1, keepdim=True)
    return ranked, visible, (torch.rand(2, 1, 4, 1, generator=generator) * (seen + 1)).long()


def chosen(ranked: Tensor, visible: Tensor, count: Tensor) -> Tensor:
    """By sorting each row in Python."""
    kept = torch.zeros(ranked.shape, dtype=torch.bool)
    for b, h, i in np.ndindex(*ranked.shape[:-1]):
        seen = visible[b, 0, i].nonzero().flatten().tolist()
        kept[b, h, i, sorted(oracle.largest(ranked[b, h, i].numpy(), seen, count[b, 0, i].item()))] = True
    return kept


@given(st.integers(0, 10**6), st.sampled_from([0, -1, -3, -100]))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_the_largest_are_kept_and_among_equals_those_of_lower_index(seed: int, low: int) -> None:
    problem = drawn(seed, low)
    assert keep_largest(*problem).equal(chosen(*problem))


@given(st.integers(0, 10**6), st.sampled_from([0, -3, -100]))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_function_transforms_keep_the_same(seed: int, low: int) -> None:
    ranked, visible, count = drawn(seed, low)
    wanted = keep_largest(ranked, visible, count)
    by_head = torch.func.vmap(keep_largest, in_dims=(1, None, None), out_dims=1)
    assert by_head(ranked, visible[:, 0], count[:, 0]).equal(wanted)
    assert torch.func.functionalize(keep_largest)(ranked, visible, count).equal(wanted)


def test_rows_with_nan_keep_all_they_see_and_other_rows_do_not_notice() -> None:
    ranked = torch.tensor([[1.0, torch.nan, 3.0, 9.0], [1.0, 2.0, 3.0, torch.nan]])[None, None]
    visible = torch.tensor([True, True, True, False]).expand(1, 1, 2, 4)
    kept = keep_largest(ranked, visible, torch.ones(1, 1, 2, 1, dtype=torch.long))
    assert kept[0, 0].tolist() == [[True, True, True, False], [False, False, True, False]]


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_compact_moves_the_members_of_each_row_to_their_ranks(seed: int, more: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, 4, 9, generator=generator)
    member = torch.rand(2, 1, 4, 9, generator=generator) < 0.6
    moved = compact(values, member.cumsum(-1), member, 9 + more, -7.0)
    for b, h, i in np.ndindex(2, 3, 4):
        inside = values[b, h, i][member[b, 0, i]].tolist()
        assert moved[b, h, i].tolist() == inside + [-7.0] * (9 + more - len(inside))


def test_compact_takes_the_fewest_slots_that_the_members_need() -> None:
    member = torch.tensor([False, True, False, True])
    assert compact(torch.arange(4.0), member.cumsum(-1), member, 2, 0.0).tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_sorted_from_the_lowest_with_nan_last(dtype: torch.dtype) -> None:
    values = torch.tensor([[3.0, torch.nan, -torch.inf, 0.5], [2.0, 1.0, 1.0, torch.inf]], dtype=dtype)
    ordered = sort_rows(values.requires_grad_())
    assert ordered.dtype == dtype
    assert ordered[0, :3].tolist() == [-torch.inf, 0.5, 3.0]
    assert ordered[0, 3].isnan()
    assert ordered[1].tolist() == [1, 1, 2, torch.inf]


@given(st.integers(0, 10**7) | st.integers(0, 5000), st.integers(0, 5), st.data(), st.integers(1, 50))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_a_share_is_counted_as_the_decimal_fraction_says(seen, digits, data, minimum) -> None:
    sparsity = data.draw(st.integers(0, 10**digits - 1)) / 10**digits
    counted = share_count(torch.tensor([seen]), sparsity, minimum)
    assert counted.tolist() == [oracle.count(seen, sparsity, minimum)]


@given(st.integers(0, 10**7) | st.integers(0, 200), st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_a_share_of_any_float_is_counted_in_exact_arithmetic(seen: int, sparsity: float) -> None:
    dropped = Fraction(sparsity) * seen + Fraction(1, 10**9)
    assume(abs(dropped - round(dropped)) > Fraction(1, 10**11))  # at the tolerance either count will do
    kept = max(min(1, seen), seen - math.floor(dropped))
    assert share_count(torch.tensor([seen]), sparsity).tolist() == [kept]


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.605, 0.7, 0.95])
def test_every_number_up_to_a_million_has_its_share(sparsity: float) -> None:
    seen, share = torch.arange(1, 10**6 + 1), Fraction(str(sparsity))
    kept = (seen - seen * share.numerator // share.denominator).clamp(min=1)
    assert share_count(seen, sparsity).equal(kept)


def test_a_share_is_counted_without_floats_which_exported_programs_round() -> None:
    graph = make_fx(lambda seen: share_count(seen, 0.7))(torch.tensor([10])).graph
    values = [node.meta["val"] for node in graph.nodes if node.op == "call_function"]
    assert len(values) > 3
    assert {value.dtype for value in values} == {torch.int64}
    assert not [each for node in graph.nodes for each in node.args if isinstance(each, float)]
