import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crisp_attention import BlockTopK
from crisp_attention.kernels.blocks import choose, front, listed
from tests.cases import normal

DRAWN = st.builds(
    BlockTopK,
    st.integers(0, 9).map(lambda n: n / 10),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(1, 2),
)


def visible(layout: BlockTopK, query: Tensor, key: Tensor, present: Tensor) -> Tensor:
    """What the layout itself sees from the full products, (B, H, L, L)."""
    products = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(2, 3)
    valid = present[:, None, None, :].expand(-1, 1, query.shape[2], -1)
    return layout.visible(valid, products).expand(products.shape)


def from_blocks(kept: Tensor, layout: BlockTopK, present: Tensor) -> Tensor:
    """The same pairs from blocks of the present tokens; a token that is not present sees nothing."""
    block = (present.cumsum(-1) - 1).clamp(min=0) // layout.block_size
    batch = torch.arange(len(present))[:, None, None]
    pairs = kept.transpose(0, 1)[:, batch, block[:, :, None], block[:, None, :]].transpose(0, 1)
    return pairs & present[:, None, :, None] & present[:, None, None, :]


@given(
    DRAWN, st.integers(1, 17), st.integers(0, 10**6), st.booleans(), st.sampled_from([1.0, 0.3, -0.3, 0.0])
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_the_choice_is_that_of_the_layout(
    layout: BlockTopK, length: int, seed: int, whole: bool, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = normal(3, 4, length, 5, seed=seed), normal(3, 2, length, 5, seed=seed + 1)
    present = torch.rand(3, length, generator=generator) < 0.7
    present[0] = True
    wanted = visible(layout, query * scale, key, present) & present[:, None, :, None]
    order = front(present)
    moved = [states.gather(2, order[:, None, :, None].expand_as(states)) for states in (query, key)]
    kept = choose(*moved, layout, scale, present.sum(-1))
    assert from_blocks(kept, layout, present).equal(wanted)
    if whole:
        assert choose(query[:1], key[:1], layout, scale).equal(kept[:1])


@given(DRAWN, st.integers(0, 10**6))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_of_equal_blocks_the_first_are_chosen(layout: BlockTopK, seed: int) -> None:
    # means of two or four small whole numbers are exact
    layout = BlockTopK(layout.sparsity, 2 * (1 + seed % 2), layout.sink_blocks, layout.local_blocks)
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(-1, 2, (1, 2, 12, 2), generator=generator).float() for _ in range(2))
    present = torch.ones(1, 12, dtype=torch.bool)
    wanted = visible(layout, query, key, present)
    assert from_blocks(choose(query, key, layout, 1.0), layout, present).equal(wanted)


def test_half_precision_is_pooled_in_single() -> None:
    query, key = (normal(1, 1, 4096, 8, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    layout = BlockTopK(0.9, block_size=1024)
    assert choose(query, key, layout, 1.0).equal(choose(query.double(), key.double(), layout, 1.0))


def test_padding_that_is_not_a_number_changes_nothing() -> None:
    query, key = normal(2, 2, 12, 4), normal(2, 2, 12, 4, seed=1)
    lengths, layout = torch.tensor([12, 7]), BlockTopK(0.6, block_size=2)
    plain = choose(query, key, layout, 1.0, lengths)
    query[1, :, 7:] = torch.nan
    key[1, :, 7:] = torch.nan
    assert choose(query, key, layout, 1.0, lengths).equal(plain)
    assert not plain[1, :, 4:].any()
    assert not plain[1, :, :, 4:].any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("of_a_query", [False, True])
def test_what_is_not_finite_lets_those_that_rank_it_see_everything(broken: float, of_a_query: bool) -> None:
    query, key = normal(1, 1, 12, 4), normal(1, 1, 12, 4, seed=1)
    (query if of_a_query else key)[..., 5, 0] = broken
    layout = BlockTopK(0.6, block_size=3)
    present = torch.ones(1, 12, dtype=torch.bool)
    wanted = visible(layout, query, key, present)
    assert from_blocks(choose(query, key, layout, 1.0), layout, present).equal(wanted)


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
        choose(states, states, BlockTopK(0.9, block_size=512), 1.0)
    assert max(sizes) <= 8 * length


class _Sizes(TorchDispatchMode):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.sizes += [each.numel() for each in tree_leaves(output) if hasattr(each, "numel")]
        return output
