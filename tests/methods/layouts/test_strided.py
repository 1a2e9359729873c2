import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import Strided
from tests.methods.layouts.rows import KEYS, VALID, is_as_defined, padded, rows_of, shown

DRAWN = st.builds(Strided, st.integers(1, 6), st.none() | st.integers(1, 6))


@given(DRAWN, VALID)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_it_shows_every_stride_and_what_is_near(layout: Strided, valid: torch.Tensor) -> None:
    assert is_as_defined(layout, valid)


def test_without_local_it_is_the_pattern_of_the_paper() -> None:
    seen = shown(Strided(4), rows_of(padded(0, 0, causal=True)))[0, 0]
    assert seen[11].nonzero().flatten().tolist() == [3, 7, 8, 9, 10, 11]


@given(DRAWN, st.integers(1, KEYS))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_it_says_exactly_where_it_shows_everything(layout: Strided, keys: int) -> None:
    seen = shown(layout, rows_of(torch.ones(1, 1, keys, keys, dtype=torch.bool)))
    assert layout.shows_everything(keys) == bool(seen.all())
    assert layout.shows_everything() == (layout.stride == 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"stride": 2.0}, r"stride must be a whole number of at least 1, got 2\.0"),
        ({"local": 0}, "local must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strided(**options)
