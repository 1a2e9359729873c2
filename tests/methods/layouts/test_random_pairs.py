import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import RandomPairs, TopK
from tests.cases import selected
from tests.methods.layouts.rows import VALID, is_as_defined, padded, rows_of, shown

DRAWN = st.builds(RandomPairs, st.integers(0, 9).map(lambda n: n / 10), st.integers(0, 2**70))


@given(DRAWN, VALID)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_it_shows_the_own_key_and_those_with_the_largest_draws(layout, valid) -> None:
    assert is_as_defined(layout, valid)


@given(DRAWN, VALID)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_it_shows_as_many_keys_as_topk_keeps(layout, valid) -> None:
    rows = rows_of(valid)
    kept = selected(TopK(layout.sparsity), rows.scores, valid)
    assert shown(layout, rows).sum(dim=-1).equal(kept.sum(dim=-1))


def test_every_pair_is_as_likely_as_any_other_and_draws_differ_by_head_query_and_seed() -> None:
    rows = rows_of(padded(0, 0), heads=400)
    one, two = (shown(RandomPairs(0.7, seed), rows)[0] for seed in (1, 2))
    off = ~torch.eye(13, dtype=torch.bool)
    chance = 3 / 12  # of 13 keys 4 are visible, one of them the own
    assert (one.double().mean(dim=0)[off] - chance).abs().max() < 0.1
    assert one[:, ~off].all()
    others = one & off
    for a, b in ((others, two & off), (others[1:], others[:-1]), (others[:, 1:], others[:, :-1])):
        assert (a & b).sum() / a.sum() == pytest.approx(chance, abs=0.04)


def test_a_head_draws_by_its_number_in_the_layer() -> None:
    rows, layout = rows_of(padded(0, 0), heads=4), RandomPairs()
    some = rows.of([1, 3], {})
    for each in (some, some.of_examples(torch.tensor([0])), some.at(torch.arange(13)[None])):
        assert shown(layout, each).equal(shown(layout, rows)[:, [1, 3]])
    assert shown(layout, some.of([1], {})).equal(shown(layout, rows)[:, [3]])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1\.0"):
        RandomPairs(1.0)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got None"):
        RandomPairs(seed=None)
