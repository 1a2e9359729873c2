import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crisp_attention as crisp
from crisp_attention import Dense, Method, TopK, TopKTopP, TopP
from tests import oracle
from tests.cases import selected, self_attention
from tests.methods.rules.rows import INFINITE, NAN, kept

MASSES = st.floats(0.01, 1, exclude_max=True)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], list[bool]]:
    """Whole numbers (many ties) or eighths between -8 and 8, and which of them the row sees."""
    steps = draw(st.sampled_from([1, 8]))
    scores = draw(st.lists(st.integers(-8 * steps, 8 * steps), min_size=1, max_size=14))
    visible = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    return [score / steps for score in scores], visible


@given(rows(), MASSES)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_it_keeps_the_fewest_keys_that_reach_the_mass_and_among_equals_the_first(
    row: tuple[list[float], list[bool]], mass: float
) -> None:
    scores, visible = row
    wanted = oracle.topp(np.array(scores), set(np.flatnonzero(visible).tolist()), mass)
    assert kept(TopP(mass), scores, visible) == sorted(wanted)


@given(rows(), st.tuples(MASSES, MASSES))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_greater_mass_only_adds_keys(row: tuple, masses: tuple[float, float]) -> None:
    fewer, more = (set(kept(TopP(mass), *row)) for mass in sorted(masses))
    assert fewer <= more


@pytest.mark.parametrize(("mass", "count"), [(0.05, 1), (0.1, 1), (0.3, 3), (0.7, 7), (0.71, 8), (0.99, 10)])
def test_of_ten_equal_keys_it_keeps_the_first_tenths(mass: float, count: int) -> None:
    assert kept(TopP(mass), [2.5] * 10) == list(range(count))


@pytest.mark.parametrize(("mass", "count"), [(0.3, 1), (0.6, 2), (0.8, 3), (0.9, 4), (0.91, 5)])
def test_a_mass_that_keys_reach_exactly_is_reached_however_sums_are_rounded(mass: float, count: int) -> None:
    scores = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64).log()[None, None, None]
    visible = torch.ones_like(scores, dtype=torch.bool)
    assert selected(TopP(mass), scores, visible).sum() == count


def test_the_whole_mass_keeps_even_keys_without_weight() -> None:
    assert kept(TopP(1), [0.0, -1000.0, -INFINITE, 3.0]) == [0, 1, 2, 3]
    assert kept(TopP(1), [0.0, -1000.0, 3.0], [True, True, False]) == [0, 1]
    q, k, v = self_attention()
    assert crisp.attention(q, k, v, TopP(1.0)).equal(crisp.attention(q, k, v, Dense()))


def test_one_key_is_enough_when_it_has_nearly_all_the_weight() -> None:
    assert kept(TopP(0.999), [-1.0, 40.0, 0.0]) == [1]


def test_the_weight_is_that_of_the_keys_the_row_sees() -> None:
    assert kept(TopP(0.6), [9.0, 1.0, 1.0, 9.0], [False, True, True, False]) == [1, 2]


def test_a_row_that_sees_nothing_keeps_nothing() -> None:
    assert kept(TopP(0.9), [1.0, 2.0], [False, False]) == []


def test_keys_of_minus_infinity_come_last() -> None:
    assert kept(TopP(0.99), [-INFINITE, 0.0, -INFINITE, 0.0]) == [1, 3]


def test_an_infinite_score_is_kept_so_that_it_reaches_the_output() -> None:
    assert 1 in kept(TopP(0.5), [0.0, INFINITE, 2.0])


@pytest.mark.parametrize("place", range(3))
def test_one_nan_in_a_row_keeps_all_that_row_sees(place: int) -> None:
    scores = [3.0, 0.0, 1.0, 5.0]
    scores[place] = NAN
    assert kept(TopP(0.5), scores, [True, True, True, False]) == [0, 1, 2]


def test_nan_outside_the_visible_keys_changes_nothing() -> None:
    assert kept(TopP(0.5), [NAN, 0.0, 5.0], [False, True, True]) == [2]


def test_rows_of_a_batch_are_decided_one_by_one() -> None:
    scores = torch.randn(2, 3, 5, 7)
    visible = torch.rand(2, 1, 5, 7) < 0.7
    together = selected(TopP(0.6), scores, visible)
    for b, h, i in np.ndindex(2, 3, 5):
        alone = kept(TopP(0.6), scores[b, h, i].tolist(), visible[b, 0, i].tolist())
        assert together[b, h, i].nonzero().flatten().tolist() == alone


@pytest.mark.parametrize(
    ("mass", "error", "message"),
    [
        (0, ValueError, r"mass must be in \(0, 1\], got 0"),
        (1.01, ValueError, r"mass must be in \(0, 1\], got 1\.01"),
        (NAN, ValueError, r"mass must be in \(0, 1\], got nan"),
        ("0.9", TypeError, r"mass must be a number in \(0, 1\], got '0\.9'"),
        (True, TypeError, r"mass must be a number in \(0, 1\], got True"),
        (10**400, ValueError, r"mass must be in \(0, 1\], got 1000"),
    ],
)
def test_a_wrong_mass_is_refused_with_expected_and_actual(mass: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TopP(mass)


def test_the_union_with_top_k_keeps_what_either_keeps_on_flat_and_on_peaked_rows() -> None:
    rules = {"k": TopK(0.7), "p": TopP(0.8), "both": TopK(0.7) | TopP(0.8)}
    flat, peaked = [0.0] * 10, [9.0, *[0.0] * 9]
    counts = {name: [len(kept(rule, row)) for row in (flat, peaked)] for name, rule in rules.items()}
    assert counts == {"k": [3, 3], "p": [8, 1], "both": [8, 3]}


def test_the_union_is_moved_by_the_sparsity_of_top_k_and_refuses_two_temperatures() -> None:
    method = Method(rule=TopK(0.7, temperature=2) | TopP(0.8, temperature=2))
    assert method.spec == "topk_topp:sparsity=0.7:mass=0.8:temperature=2"
    assert method.with_sparsity(0.5).sparsity == 0.5
    assert TopP(0.8, temperature=2) | TopK(0.7, temperature=2) == method.rule
    assert not TopKTopP(0.7, mass=0.8).drops_nothing(10)
    assert TopKTopP(0.7, mass=1.0).drops_nothing()
    with pytest.raises(ValueError, match=r"the same temperature, got 1\.0 and 2"):
        TopK(0.5) | TopP(0.5, temperature=2)
    with pytest.raises(TypeError, match="unsupported operand"):
        TopK(0.5) | TopK(0.2)
