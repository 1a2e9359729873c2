from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crisp_attention import BlockTopK
from crisp_attention.methods.blocks import BlockGraph, Choice, listed
from crisp_attention.methods.rows import Rows
from tests.cases import normal

DRAWN = st.builds(
    BlockTopK,
    st.integers(0, 9).map(lambda n: n / 10),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(1, 2),
)


def rows_of(query: Tensor, key: Tensor, present: Tensor | None = None, scale: float = 1.0) -> Rows:
    """The rows of a self-attention in which every query sees the tokens that are present (B, L)."""
    mask = None if present is None else present[:, None, None].expand(-1, 1, query.shape[2], -1)
    return Rows(query, key, scale, mask)


def chosen(layout: BlockTopK, rows: Rows) -> BlockGraph:
    graph = layout.blocks(rows)
    assert graph is not None
    return graph


def same(layout: BlockTopK, rows: Rows) -> bool:
    """Whether the blocks show the queries that are present the pairs that the layout does, one by one."""
    present = rows.valid[:, :, :1].transpose(2, 3)
    wanted = layout.visible(rows).expand(rows.products.shape) & present
    return bool((chosen(layout, rows).pairs(rows) & rows.valid & present).equal(wanted))


@given(
    DRAWN, st.integers(1, 17), st.integers(0, 10**6), st.booleans(), st.sampled_from([1.0, 0.3, -0.3, 0.0])
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_whole_blocks_are_the_pairs_one_by_one(
    layout: BlockTopK, length: int, seed: int, whole: bool, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = normal(3, 4, length, 5, seed=seed), normal(3, 2, length, 5, seed=seed + 1)
    present = torch.rand(3, length, generator=generator) < 0.7
    present[0] = True
    rows = rows_of(query, key, present, scale)
    assert same(layout, rows)
    if whole:
        alone = chosen(layout, rows_of(query[:1], key[:1], scale=scale))
        assert alone.seen.equal(chosen(layout, rows).seen[:1])


@given(DRAWN, st.integers(0, 10**6))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_of_equal_blocks_the_first_are_chosen(layout: BlockTopK, seed: int) -> None:
    # means of two or four small whole numbers are exact
    layout = BlockTopK(layout.sparsity, 2 * (1 + seed % 2), layout.sink_blocks, layout.local_blocks)
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(-1, 2, (1, 2, 12, 2), generator=generator).float() for _ in range(2))
    assert same(layout, rows_of(query, key))


def test_half_precision_is_pooled_in_single() -> None:
    query, key = (normal(1, 1, 4096, 8, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    layout = BlockTopK(0.9, block_size=1024)
    half, double = chosen(layout, rows_of(query, key)), chosen(layout, rows_of(query.double(), key.double()))
    assert half.seen.equal(double.seen)


def test_padding_that_is_not_a_number_changes_nothing() -> None:
    query, key = normal(2, 2, 12, 4), normal(2, 2, 12, 4, seed=1)
    present, layout = torch.arange(12) < torch.tensor([[12], [7]]), BlockTopK(0.6, block_size=2)
    plain = chosen(layout, rows_of(query, key, present)).seen
    query[1, :, 7:] = torch.nan
    key[1, :, 7:] = torch.nan
    assert chosen(layout, rows_of(query, key, present)).seen.equal(plain)
    assert not plain[1, :, 4:].any()
    assert not plain[1, :, :, 4:].any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("of_a_query", [False, True])
def test_what_is_not_finite_lets_those_that_rank_it_see_everything(broken: float, of_a_query: bool) -> None:
    query, key = normal(1, 1, 12, 4), normal(1, 1, 12, 4, seed=1)
    (query if of_a_query else key)[..., 5, 0] = broken
    assert same(BlockTopK(0.6, block_size=3), rows_of(query, key))


@pytest.mark.parametrize(
    "change",
    [
        {"mask": torch.ones(2, 1, 12, 12, dtype=torch.bool)},
        {"mask": torch.ones(2, 2, 1, 12, dtype=torch.bool)},
    ],
    ids=["a mask of each query", "a mask of each head"],
)
def test_queries_that_a_mask_may_show_different_keys_have_no_blocks(change: dict) -> None:
    rows = rows_of(normal(2, 2, 12, 4), normal(2, 2, 12, 4, seed=1))
    assert BlockTopK(0.6, block_size=3).blocks(replace(rows, **change)) is None


@pytest.mark.parametrize(
    "change", [{"causal": True}, {"query": normal(2, 2, 1, 4)}], ids=["causal", "decoding"]
)
def test_queries_that_see_different_keys_choose_for_themselves(change: dict) -> None:
    rows = rows_of(normal(2, 2, 12, 4), normal(2, 2, 12, 4, seed=1))
    graph = chosen(BlockTopK(0.6, block_size=3, sink_blocks=1), replace(rows, **change))
    assert graph.seen is None
    assert graph.choice == Choice(0.6, sink_blocks=1, local_blocks=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_list_of_blocks_is_ascending(seed: int) -> None:
    kept = normal(2, 3, 5, 5, seed=seed) > 0.3
    counts, blocks = listed(kept)
    for b in torch.cartesian_prod(*(torch.arange(n) for n in kept.shape[:-1])):
        at = tuple(b)
        assert blocks[at][: counts[at]].tolist() == kept[at].nonzero().flatten().tolist()


def test_nothing_of_size_length_by_length_is_held() -> None:
    length = 1 << 16
    states = normal(1, 1, 1, 4, dtype=torch.float32).expand(1, 1, length, 4)
    sizes: list[int] = []
    with _Sizes(sizes):
        BlockTopK(0.9, block_size=512).blocks(rows_of(states, states))
    assert max(sizes) <= 8 * length


class _Sizes(TorchDispatchMode):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.sizes += [each.numel() for each in tree_leaves(output) if hasattr(each, "numel")]
        return output
