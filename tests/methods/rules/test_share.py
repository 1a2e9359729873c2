"""A budget as a number of keys; `test_topk.py` has that of a share."""

from dataclasses import replace

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import Dense, Method, RandomK, TopK
from crisp_attention.methods.hashing import head_seeds
from crisp_attention.methods.pairs import causal_mask
from tests.cases import normal, selected, self_attention

both = pytest.mark.parametrize("rule", [TopK, RandomK])
CAUSAL = causal_mask(20, 20, torch.device("cpu"))


def counts(rule: TopK | RandomK, visible: torch.Tensor) -> list[int]:
    """How many keys each row of the first head keeps."""
    scores = normal(1, 2, *visible.shape[-2:]).float()
    return selected(rule, scores, visible, head_seeds(torch.tensor(3), 2))[0, 0].sum(-1).tolist()


@both
@pytest.mark.parametrize("keep", [1, 16, 20, 21, 10**6])
def test_every_row_keeps_so_many_keys_or_all_it_sees(rule: type, keep: int) -> None:
    assert counts(rule(keep=keep), CAUSAL) == [min(keep, n) for n in range(1, 21)]


@both
def test_rows_that_see_nothing_keep_nothing(rule: type) -> None:
    assert counts(rule(keep=4), torch.zeros(1, 1, 3, 8, dtype=torch.bool)) == [0, 0, 0]


def test_the_keys_with_the_largest_scores_are_the_same_as_those_of_the_share() -> None:
    scores = normal(2, 3, 5, 10)
    assert selected(TopK(keep=4), scores).equal(selected(TopK(0.6), scores))


def test_as_many_as_there_are_is_dense() -> None:
    inputs = self_attention()
    assert crisp.attention(*inputs, TopK(keep=7)).equal(crisp.attention(*inputs, Dense()))


@both
def test_a_number_of_keys_is_no_sparsity(rule: type) -> None:
    method = Method(rule=rule(keep=16))
    assert method.sparsity is None
    assert method.spec == f"{rule.name}:keep=16"
    with pytest.raises(ValueError, match="has no single sparsity to set"):
        method.with_sparsity(0.5)


@both
def test_the_share_is_four_fifths_unless_something_is_said(rule: type) -> None:
    assert rule() == rule(0.8) == rule(sparsity=0.8, min_keep=1)
    assert rule(min_keep=3).sparsity == 0.8
    assert rule(0.0).sparsity == 0.0


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, r"keep must be a whole number of at least 1, got 0"),
        ({"keep": 2.0}, r"keep must be a whole number of at least 1, got 2\.0"),
        ({"keep": True}, r"keep must be a whole number of at least 1, got True"),
        ({"keep": "16"}, r"keep must be a whole number of at least 1, got '16'"),
        (
            {"keep": 16, "sparsity": 0.5},
            r"keep=16 cannot be combined with sparsity or min_keep, got sparsity=0\.5 and min_keep=1",
        ),
        (
            {"keep": 16, "sparsity": 0.0},
            r"keep=16 cannot be combined with sparsity or min_keep, got sparsity=0\.0 and min_keep=1",
        ),
        (
            {"keep": 16, "min_keep": 4},
            r"keep=16 cannot be combined with sparsity or min_keep, got sparsity=None and min_keep=4",
        ),
    ],
)
def test_a_number_that_cannot_be_and_a_share_beside_it_are_refused(
    rule: type, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**options)


@both
def test_a_share_cannot_be_put_beside_the_number_afterwards(rule: type) -> None:
    with pytest.raises(ValueError, match="cannot be combined with sparsity"):
        replace(rule(keep=4), sparsity=0.5)
    assert replace(rule(keep=4), keep=5) == rule(keep=5)
