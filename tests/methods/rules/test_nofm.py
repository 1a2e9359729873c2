import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import Method, NofM, Window
from crisp_attention.methods.pairs import causal_mask
from crisp_attention.methods.rows import Rows
from tests import oracle
from tests.cases import selected

PATTERNS = st.tuples(st.integers(1, 5), st.integers(0, 5)).map(lambda n: NofM(n[0], n[0] + n[1]))


@given(rule=PATTERNS, seed=st.integers(0, 10**6), low=st.sampled_from([0, -1, -50]))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_each_group_of_visible_keys_keeps_its_largest(rule: NofM, seed: int, low: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(low, 1 - low, (2, 3, 4, 13), generator=draw).float()
    visible = torch.rand(2, 1, 4, 13, generator=draw) < 0.7
    kept = selected(rule, scores, visible)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        seen = set(visible[b, 0, i].nonzero().flatten().tolist())
        wanted = oracle.nofm(scores[b, h, i].numpy(), seen, rule.n, rule.m)
        assert set(kept[b, h, i].nonzero().flatten().tolist()) == wanted


@pytest.mark.parametrize("length", [1, 4, 7, 16, 33])
def test_exactly_n_of_every_full_group_ties_included_and_at_least_one_of_the_last(length: int) -> None:
    kept = selected(NofM(2, 4), torch.zeros(1, 1, 1, length)).flatten()
    full = length // 4 * 4
    assert kept[:full].view(-1, 4).tolist() == [[True, True, False, False]] * (full // 4)
    assert kept[full:].sum() == math.ceil((length - full) / 2)


def test_padding_on_either_side_moves_no_group() -> None:
    scores = torch.randn(1, 2, 5, 11)
    alone = selected(NofM(1, 3), scores)
    padded = torch.nn.functional.pad(scores, (4, 2), value=99.0)
    visible = torch.zeros(1, 1, 5, 17, dtype=torch.bool)
    visible[..., 4:15] = True
    assert selected(NofM(1, 3), padded, visible)[..., 4:15].equal(alone)


def test_under_a_causal_mask_a_group_is_chosen_from_the_past_alone() -> None:
    visible = causal_mask(9, 9, torch.device("cpu"))
    scores = torch.randn(1, 1, 9, 9)
    whole = selected(NofM(1, 4), scores, visible)
    for i in range(9):
        assert whole[..., i, : i + 1].equal(selected(NofM(1, 4), scores[..., i, : i + 1]))


def test_inside_a_window_groups_count_what_the_window_shows() -> None:
    method = Method(Window(5), NofM(1, 5))
    valid = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    rows = Rows.of_scores(torch.randn(1, 1, 9, 9), valid)
    assert method.rule.select(rows, method.layout.visible(rows)).sum(-1).eq(1).all()


def test_nan_keeps_its_group_and_leaves_the_others_alone() -> None:
    scores = torch.tensor([1.0, torch.nan, 0.0, 3.0, 2.0, 1.0])[None, None, None]
    assert selected(NofM(1, 3), scores).flatten().tolist() == [True, True, True, True, False, False]


def test_a_row_without_visible_keys_keeps_none() -> None:
    assert not selected(NofM(1, 2), torch.randn(1, 1, 2, 4), torch.zeros(1, 1, 2, 4, dtype=torch.bool)).any()


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [
        (0, 4, "n must be a whole number of at least 1, got 0"),
        (2, 1, "m must be a whole number of at least 2, got 1"),
        (1.5, 4, r"n must be a whole number of at least 1, got 1\.5"),
        (True, 4, "n must be a whole number of at least 1, got True"),
    ],
)
def test_a_pattern_that_is_none_is_refused(n: object, m: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NofM(n, m)
