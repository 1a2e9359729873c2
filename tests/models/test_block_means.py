import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention.models.block_means import BlockMeans
from tests.cases import normal

BATCH, GROUPS, WIDTH = 3, 2, 4


def by_hand(key: Tensor, valid: Tensor, size: int) -> Tensor:
    """The mean of each run of `size` valid keys, zeros where there is none."""
    means = torch.zeros(BATCH, GROUPS, -(-key.shape[2] // size), WIDTH, dtype=torch.float64)
    for b in range(BATCH):
        seen = key[b, :, valid[b, 0, 0]].double()
        for n, part in enumerate(seen.split(size, dim=1)):
            if part.shape[1]:
                means[b, :, n] = part.mean(dim=1)
    return means


def padded(left: list[int], keys: int, unused: int = 0) -> Tensor:
    """(B, 1, 1, keys + unused): valid keys after so many of padding, before the unused slots of a cache."""
    place = torch.arange(keys + unused)
    return ((place >= torch.tensor(left)[:, None]) & (place < keys))[:, None, None]


@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=3), st.integers(1, 5), st.integers(5, 9), st.booleans()
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_adding_keys_one_by_one_gives_the_means_of_all(left, size, start, static) -> None:
    """With every kind of padding, in a cache that grows and in one of fixed size."""
    end = 14
    key = normal(BATCH, GROUPS, end, WIDTH).float()

    def at(keys: int) -> tuple[Tensor, Tensor]:
        if static:
            return torch.where(torch.arange(end)[:, None] < keys, key, 50.0), padded(left, keys, end - keys)
        return key[:, :, :keys], padded(left, keys)

    means = BlockMeans.of(*at(start), size)
    for keys in range(start + 1, end + 1):
        now, valid = at(keys)
        assert means.follows(valid)
        means.add(now, valid)
        torch.testing.assert_close(means.means().double(), by_hand(now, valid, size), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("given_in", "kept_in"), [("bfloat16", "float32"), ("float64", "float64")])
def test_sums_are_kept_in_single_precision_or_better(given_in: str, kept_in: str) -> None:
    key, valid = normal(BATCH, GROUPS, 9, WIDTH).to(getattr(torch, given_in)), padded([0, 1, 2], 9)
    means = BlockMeans.of(key, valid, 4)
    assert means.sums.dtype == getattr(torch, kept_in)
    torch.testing.assert_close(means.means().double(), by_hand(key, valid, 4), rtol=0, atol=1e-6)


BEFORE = padded([0, 0, 2], 6)
OTHERS = {
    "the same keys again": BEFORE,
    "two further keys": padded([0, 0, 2], 8),
    "a key of padding more": padded([0, 1, 2], 7),
    "a key of padding fewer": padded([0, 0, 1], 7),
    "fewer keys": padded([0, 0, 2], 5),
    "fewer examples": padded([0, 0, 2], 7)[:2],
    "other examples": padded([0, 0, 2], 7)[[2, 1, 0]],
    "a token that does not see itself": padded([0, 0, 2], 7) & (torch.arange(7) < 6),
    "an example that sees nothing": padded([0, 0, 7], 7),
    "a window that moved on": torch.ones(3, 1, 1, 6, dtype=torch.bool),
}


@pytest.mark.parametrize("valid", OTHERS.values(), ids=OTHERS)
def test_anything_but_one_further_key_does_not_follow(valid: Tensor) -> None:
    means = BlockMeans.of(normal(BATCH, GROUPS, 6, WIDTH), BEFORE, 2)
    assert means.follows(padded([0, 0, 2], 7))
    assert not means.follows(valid)


def test_an_example_that_saw_nothing_does_not_follow_itself() -> None:
    nothing = torch.zeros(3, 1, 1, 6, dtype=torch.bool)
    assert not BlockMeans.of(normal(BATCH, GROUPS, 6, WIDTH), nothing, 2).follows(nothing)
