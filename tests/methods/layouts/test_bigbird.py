import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import BigBird, Window
from tests.methods.layouts.rows import VALID, is_as_defined, padded, rows_of, shown

DRAWN = st.builds(
    BigBird,
    st.sampled_from([1, 3, 5]),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(0, 2**70),
)
RANDOM = BigBird(1, global_tokens=0, random_blocks=2, block_size=3)


@given(DRAWN, VALID)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_it_shows_window_global_tokens_and_drawn_blocks(layout: BigBird, valid: torch.Tensor) -> None:
    assert is_as_defined(layout, valid)


@given(DRAWN)
@settings(deadline=None, max_examples=20, derandomize=True)
def test_without_random_blocks_it_is_a_window(layout: BigBird) -> None:
    rows = rows_of(padded(2, 1))
    window = Window(layout.width, layout.global_tokens)
    plain = BigBird(layout.width, layout.global_tokens, 0, layout.block_size)
    assert shown(plain, rows).equal(shown(window, rows))


def test_the_queries_of_a_block_draw_the_same_whole_blocks() -> None:
    seen = shown(RANDOM, rows_of(torch.ones(1, 1, 12, 12, dtype=torch.bool)))[0]
    for own in range(4):
        rows = seen[:, 3 * own : 3 * own + 3] & ~torch.eye(12, dtype=torch.bool)[3 * own : 3 * own + 3]
        drawn = rows.any(dim=1).unflatten(-1, (4, 3))
        assert drawn.all(dim=-1).equal(drawn.any(dim=-1))
        assert (drawn.any(dim=-1).sum(dim=-1) == 2).all()


def test_blocks_are_drawn_evenly_and_differ_by_head_query_block_and_seed() -> None:
    valid, off = torch.ones(1, 1, 60, 60, dtype=torch.bool), ~torch.eye(60, dtype=torch.bool)
    layouts = (BigBird(1, global_tokens=0, random_blocks=3, seed=seed) for seed in (1, 2))
    one, two = (shown(layout, rows_of(valid, heads=64))[0] & off for layout in layouts)
    times = one.sum(dim=(0, 1))
    assert (times / (64 * 59 * 3 / 60) - 1).abs().max() < 0.3
    for a, b in ((one, two), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1])):
        assert (a & b).sum() / a.sum() == pytest.approx(3 / 60, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2}, "width must be an odd whole number of at least 1, got 2"),
        ({"global_tokens": -1}, "global_tokens must be a whole number of at least 0, got -1"),
        ({"random_blocks": -1}, "random_blocks must be a whole number of at least 0, got -1"),
        ({"block_size": 0}, "block_size must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigBird(**options)
