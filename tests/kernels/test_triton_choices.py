"""Choosing blocks in Triton: what the layout chooses by torch's operations. Triton's interpreter runs it on hosts."""

import pytest
import torch
from torch import Tensor

from crisp_attention import BlockTopK
from crisp_attention.kernels import triton_choices
from crisp_attention.methods.blocks import listed
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.rows import Rows

pytest.importorskip("triton.language", reason="triton is not installed; it is for Linux only")
pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter takes seconds for each of them
slow_on_hosts = pytest.mark.cuda if torch.cuda.is_available() else pytest.mark.slow


def eighths(*shape: int, seed: int) -> Tensor:
    """Whose means and products are exact, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-8, 9, shape, generator=generator) / 8).to(DEVICE)


def some_rows(length: int, lengths: list[int] | None = None) -> Rows:
    query, key = eighths(2, 4, length, 24, seed=1), eighths(2, 2, length, 24, seed=2)
    mask = None
    if lengths is not None:
        real = torch.arange(length) < torch.tensor(lengths)[:, None]
        mask = real[:, None, None].expand(2, 1, 1, length).to(DEVICE)
    return Rows(query, key, scale=0.25, mask=mask)


@pytest.mark.parametrize(
    "lengths", [pytest.param(None, marks=slow_on_hosts), pytest.param([70, 1], marks=slow_on_hosts), [33, 64]]
)
@pytest.mark.parametrize(
    "layout",
    [
        BlockTopK(0.8, 16),
        pytest.param(BlockTopK(0.5, 8, 2, 0), marks=slow_on_hosts),
        pytest.param(BlockTopK(0.3, 16, 0, 3), marks=slow_on_hosts),
        pytest.param(BlockTopK(0.99, 32, 0, 0), marks=slow_on_hosts),
    ],
    ids=repr,
)
def test_what_is_seen_and_what_it_is_ranked_by(layout: BlockTopK, lengths: list[int] | None) -> None:
    rows = some_rows(70, lengths)
    assert triton_choices.can_choose(rows, layout)
    found, right = triton_choices.chosen(rows, layout), layout.blocks(rows)
    assert found is not None
    assert right is not None
    assert torch.equal(found.seen, right.seen)
    present = right.blocks.present(rows.query.device).expand_as(right.ranked)
    torch.testing.assert_close(found.ranked[present], right.ranked[present])
    for share in (0.0, 0.2, 0.6):
        rest = Linear(share).marginal(right)
        assert torch.equal(triton_choices.rest(found, share) & present, rest & present)


@slow_on_hosts
def test_rows_that_rank_by_what_is_not_finite_keep_all_their_blocks() -> None:
    rows, layout = some_rows(96), BlockTopK(0.8, 16)
    rows.query[0, 1, 20], rows.key[1, 1, 50], rows.key[0, 0, 3] = torch.nan, torch.inf, -torch.inf
    found, right = triton_choices.chosen(rows, layout), layout.blocks(rows)
    assert torch.equal(found.seen, right.seen)
    torch.testing.assert_close(found.ranked, right.ranked, equal_nan=True)
    assert torch.equal(triton_choices.rest(found, 0.1), Linear(0.1).marginal(right))


@slow_on_hosts
def test_lists_of_rows_and_columns() -> None:
    seen = torch.rand(2, 3, 5, 300, generator=torch.Generator().manual_seed(0)).to(DEVICE) > 0.7
    seen[0, 0, 0] = False
    for each in (seen, seen.transpose(-1, -2)):
        counts, blocks = triton_choices.lists(each)
        right, ordered = listed(each)
        assert torch.equal(counts, right)
        there = torch.arange(each.shape[-1], device=DEVICE) < counts[..., None]
        assert torch.equal(blocks[there], ordered[there])


def test_it_leaves_the_rest_to_the_layout() -> None:
    rows = some_rows(32)
    assert not triton_choices.can_choose(Rows(rows.query, rows.key, causal=True), BlockTopK(0.5))
    assert not triton_choices.can_choose(Rows(rows.query[:, :, :5], rows.key), BlockTopK(0.5))
    assert not triton_choices.can_choose(rows, BlockTopK(0.0))
    assert not triton_choices.can_choose(Rows(rows.query.double(), rows.key.double()), BlockTopK(0.5))
