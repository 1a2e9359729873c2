from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import LSH
from crisp_attention.methods.layouts import lsh
from crisp_attention.methods.rows import Rows
from tests.cases import normal
from tests.methods.layouts.rows import VALID, is_as_defined, padded, rows_of, shown

DRAWN = st.builds(
    LSH,
    st.just(1) | st.integers(1, 6).map(lambda n: 2 * n),
    st.integers(1, 3),
    st.integers(0, 2**70),
    st.sampled_from([0, 0, 1, 5]),
    st.integers(0, 2),
)


@given(DRAWN, VALID)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_it_shows_the_own_key_and_those_in_the_same_bucket(layout, valid) -> None:
    assert is_as_defined(layout, valid)


@given(DRAWN, st.sampled_from([1e-30, 0.1, 1e30]))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_the_length_of_a_vector_changes_nothing(layout: LSH, factor: float) -> None:
    rows = rows_of(padded(0, 0))
    seen = shown(layout, rows)
    assert shown(layout, replace(rows, query=rows.query * factor, key=rows.key / factor)).equal(seen)


def test_nearer_vectors_share_a_bucket_more_often_and_opposite_ones_never() -> None:
    key, other = normal(1, 500, 1, 16), normal(1, 500, 1, 16, seed=1)
    share = []
    for query in (key, 0.9 * key + 0.3 * other, 0.5 * key + 0.8 * other, other, -key):
        # the last of two keys is the query's own
        rows = Rows(query, torch.cat([key, query], dim=2))
        share.append(shown(LSH(8), rows)[..., 0].double().mean().item())
    assert share == sorted(share, reverse=True)
    assert (share[0], share[-1]) == (1, 0)
    assert share[3] == pytest.approx(1 / 8, abs=0.05)


def test_rounds_only_add_keys_and_seeds_and_heads_draw_their_own() -> None:
    rows = rows_of(padded(0, 0))
    one, two, other = (shown(layout, rows) for layout in (LSH(8), LSH(8, rounds=3), LSH(8, seed=1)))
    assert not (one & ~two).any()
    assert (two & ~one).any()
    assert not one.equal(other)
    alike = Rows(rows.query[:, :1].expand(-1, 2, -1, -1), rows.key[:, :1])  # both heads see the same vectors
    seen = shown(LSH(8), alike)
    assert not seen[:, 0].equal(seen[:, 1])


def test_torchs_generator_and_the_dtype_of_the_same_values_change_nothing() -> None:
    rows = rows_of(padded(0, 0))
    half = replace(rows, query=rows.query.bfloat16(), key=rows.key.bfloat16())
    before = torch.get_rng_state()
    seen = shown(LSH(8), half)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(7)
    for dtype in (torch.float32, torch.float64):
        assert shown(LSH(8), replace(half, query=half.query.to(dtype), key=half.key.to(dtype))).equal(seen)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_is_hidden_from_nobody(broken: float) -> None:
    rows = rows_of(padded(0, 0))
    plain = shown(LSH(8), rows)
    rows.query[:, :, 3, 0] = broken
    rows.key[:, :, 9, 0] = broken
    seen = shown(LSH(8), rows)
    assert seen[..., 3, :].all()
    assert seen[..., 9].all()
    others = [[i for i in range(13) if i != at] for at in (3, 9)]
    assert seen[..., others[0], :][..., others[1]].equal(plain[..., others[0], :][..., others[1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 0}, "buckets must be a whole number of at least 1, got 0"),
        ({"buckets": 3}, "buckets must be 1 or an even whole number, got 3"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSH(**options)


@pytest.mark.parametrize("groups", [4, 2])
def test_head_by_head_hashes_alike(groups, monkeypatch) -> None:
    query, key = normal(2, 4, 30, 8, seed=1).float(), normal(2, groups, 30, 8, seed=2).float()
    query[0, 1, 3] = torch.nan
    rows, layout = Rows(query, key, 1.0), LSH(buckets=6, rounds=3, seed=5)
    together = layout.visible(rows)
    monkeypatch.setattr(lsh, "FEW", 0)
    assert layout.visible(rows).equal(together)
    assert 0 < together.float().mean() < 1
