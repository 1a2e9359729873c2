import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention import BlockTopK
from crisp_attention.methods.pairs import causal_mask
from crisp_attention.methods.rows import Rows
from tests import oracle
from tests.cases import normal
from tests.methods.layouts.rows import KEYS, padded

CPU = torch.device("cpu")
DRAWN = st.builds(
    BlockTopK,
    st.integers(1, 9).map(lambda n: n / 10),
    st.integers(2, 5),
    st.integers(0, 2),
    st.integers(1, 2),
)


def visible(layout: BlockTopK, valid: Tensor, products: Tensor) -> Tensor:
    seen = layout.visible(Rows.of_scores(products, valid))
    assert not (seen & ~valid).any()
    return seen


@given(DRAWN, st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(1, KEYS))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_it_sees_the_blocks_with_the_largest_mean_product(layout, left, right, causal, queries) -> None:
    valid, products = padded(left, right, causal)[..., -queries:, :], normal(1, 2, queries, KEYS)
    seen = visible(layout, valid, products)
    for h, i in np.ndindex(2, queries):
        wanted = oracle.blocks(i, valid[0, 0].numpy(), products[0, h].numpy(), layout)
        assert set(seen[0, h, i].nonzero().flatten().tolist()) == wanted, (h, i)


@given(DRAWN, st.integers(0, 4), st.integers(0, 4), st.booleans())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_padding_on_either_side_changes_nothing(layout, left, right, causal) -> None:
    products, length = normal(1, 3, KEYS, KEYS), KEYS - left - right
    inside = slice(left, KEYS - right)
    alone = torch.ones(1, 1, length, length, dtype=torch.bool)
    alone = alone & causal_mask(length, length, CPU) if causal else alone
    seen = visible(layout, padded(left, right, causal), products)[..., inside, inside]
    assert seen.equal(visible(layout, alone, products[..., inside, inside]))


@given(DRAWN, st.lists(st.integers(1, 7), min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_packed_sequences_see_the_blocks_that_each_sees_alone(layout, lengths, causal) -> None:
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    total = len(number)
    order = causal_mask(total, total, CPU) if causal else torch.ones(1, 1, total, total, dtype=torch.bool)
    products = normal(1, 2, total, total)
    seen = visible(layout, order & (number[:, None] == number), products)
    for which in range(len(lengths)):
        at = (number == which).nonzero().flatten()
        inside = slice(at[0], at[-1] + 1)
        alone = visible(layout, order[..., inside, inside], products[..., inside, inside])
        assert seen[..., inside, inside].equal(alone)


def test_padding_is_in_no_mean() -> None:
    """Five real keys in blocks of two, then padding that would win every comparison."""
    products = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.6, 900.0, 900.0]).expand(1, 1, 7, 7)
    valid = (torch.arange(7) < 5).expand(1, 1, 7, 7)
    seen = visible(BlockTopK(0.5, block_size=2), valid, products)
    assert seen[0, 0, 3].tolist() == [True, True, True, True, False, False, False]
    # the last block has one key, whose mean is 0.6, not 0.3
    products = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.6, -900.0, -900.0]).expand(1, 1, 7, 7)
    seen = visible(BlockTopK(0.5, block_size=2), valid, products)
    assert seen[0, 0, 3].tolist() == [False, False, True, True, True, False, False]


@given(DRAWN)
@settings(deadline=None, max_examples=30, derandomize=True)
def test_all_queries_of_a_block_see_the_same_blocks(layout: BlockTopK) -> None:
    seen = visible(layout, padded(0, 0), normal(2, 3, KEYS, KEYS))
    for first in range(0, KEYS, layout.block_size):
        block = seen[:, :, first : first + layout.block_size]
        assert block.equal(block[:, :, :1].expand_as(block))


@given(DRAWN, st.integers(1, KEYS - 1))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_nothing_in_a_causal_row_depends_on_later_tokens(layout: BlockTopK, since: int) -> None:
    products, other = normal(1, 3, KEYS, KEYS), normal(1, 3, KEYS, KEYS, seed=1) * 10
    changed = products.clone()
    changed[..., since:, :] = other[..., since:, :]
    changed[..., :, since:] = other[..., :, since:]
    causal = padded(0, 0, causal=True)
    before, after = (visible(layout, causal, p)[:, :, :since] for p in (products, changed))
    assert before.equal(after)
    # nor on whether the later tokens are there
    assert visible(layout, causal[..., :since, :since], products[..., :since, :since]).equal(
        before[..., :since]
    )


@given(DRAWN)
@settings(deadline=None, max_examples=20, derandomize=True)
def test_under_a_causal_mask_the_own_block_is_a_triangle(layout: BlockTopK) -> None:
    seen = visible(layout, padded(0, 0, causal=True), normal(1, 2, KEYS, KEYS))
    for i in range(KEYS):
        first = i // layout.block_size * layout.block_size
        assert seen[..., i, first : i + 1].all()
        assert not seen[..., i, i + 1 :].any()


@given(DRAWN, st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_steps_and_chunks_see_what_the_whole_causal_matrix_sees(layout, step: int, left: int) -> None:
    valid, products = padded(left, 0, causal=True), normal(1, 2, KEYS, KEYS)
    whole = visible(layout, valid, products)
    for end in range(left + step, KEYS + 1, step):
        rows = (..., slice(end - step, end), slice(0, end))
        assert visible(layout, valid[rows], products[rows]).equal(whole[rows])


@given(DRAWN)
@settings(deadline=None, max_examples=30, derandomize=True)
def test_sink_blocks_and_near_blocks_are_always_kept_and_the_count_is_the_share(layout: BlockTopK) -> None:
    size, blocks = layout.block_size, -(-KEYS // layout.block_size)
    low = torch.zeros(1, 1, KEYS, KEYS)  # the blocks in between have larger products than any kept by force
    low[..., layout.sink_blocks * size :] = 9.0
    seen = visible(layout, padded(0, 0), low)[0, 0]
    for i in range(KEYS):
        kept = {j // size for j in seen[i].nonzero().flatten().tolist()}
        own = i // size
        near = {b for b in range(blocks) if abs(b - own) < layout.local_blocks}
        forced = near | set(range(min(layout.sink_blocks, blocks)))
        assert forced <= kept
        assert len(kept) == max(oracle.count(blocks, layout.sparsity, 1), len(forced))


def test_a_sparsity_of_zero_sees_everything() -> None:
    valid = padded(2, 1, causal=True)
    assert visible(BlockTopK(0.0), valid, normal(1, 1, KEYS, KEYS)).equal(valid)


def test_a_short_row_is_one_block() -> None:
    valid = padded(0, 0)
    assert visible(BlockTopK(0.99), valid, normal(1, 1, KEYS, KEYS)).equal(valid.expand(1, 1, KEYS, KEYS))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("causal", [True, False])
def test_where_a_product_is_not_finite_the_queries_it_is_averaged_with_see_all_and_no_other(
    value, causal
) -> None:
    products, layout = normal(1, 1, KEYS, KEYS), BlockTopK(0.7, block_size=2)
    valid = padded(0, 0, causal)
    plain = visible(layout, valid, products)
    products[..., 9, 4] = value
    seen = visible(layout, valid, products)
    group = [9] if causal else [8, 9]
    others = [i for i in range(KEYS) if i not in group]
    assert seen[..., others, :].equal(plain[..., others, :])
    assert seen[..., group, :].equal(valid[..., group, :])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1\.0"),
        ({"sparsity": None}, TypeError, r"sparsity must be a number in \[0, 1\), got None"),
        ({"block_size": 0}, ValueError, r"block_size must be a whole number of at least 1, got 0"),
        ({"block_size": 6.5}, ValueError, r"block_size must be a whole number of at least 1, got 6\.5"),
        ({"sink_blocks": -1}, ValueError, r"sink_blocks must be a whole number of at least 0, got -1"),
        ({"local_blocks": -1}, ValueError, r"local_blocks must be a whole number of at least 0, got -1"),
        ({"local_blocks": True}, ValueError, r"local_blocks must be a whole number of at least 0, got True"),
    ],
)
def test_wrong_options_are_refused_with_expected_and_actual(options, error, message) -> None:
    with pytest.raises(error, match=message):
        BlockTopK(**options)
