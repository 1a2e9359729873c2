import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention import Measurement, Method, TopK
from crisp_attention.insight.measuring import LayerTotals
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.rows import Rows
from tests.cases import attention, normal, self_attention


def rows(*lines: str) -> Tensor:
    """A (1, 1, L, S) matrix drawn with `x` for a pair that is in and `.` for one that is not."""
    return torch.tensor([[c == "x" for c in line] for line in lines])[None, None]


def seen(odds: list[list[float]], valid: Tensor, keep: Tensor) -> Observation:
    """One call whose dense weights are in proportion to `odds`."""
    scores = torch.tensor(odds).log()[None, None]
    return Observation(Rows.of_scores(scores, valid), keep, valid_queries(valid))


def measured(*calls: Observation) -> dict:
    result = Measurement()
    for call in calls:
        result.observe(0, "layers.0", "topk", call)
    return result.table().iloc[0].to_dict()


def observed(batch: int, seed: int, sparsity: float = 0.6, length: int = 7) -> Observation:
    """A real call with right-padded examples."""
    draws: list[Observation] = []
    q, k, v = self_attention(batch=batch, length=length)
    lengths = torch.randint(1, length + 1, (batch, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    method = Method(rule=TopK(sparsity))
    q = q + normal(*q.shape, seed=seed)
    attention(q, k, v, method, scale=1.0, valid=torch.arange(length) < lengths, observe=draws.append)
    return draws[0]


def test_measurements_of_parts_add_up_and_stay_as_they_are() -> None:
    parts = [Measurement(), Measurement(), Measurement()]
    whole, together = Measurement(), Measurement()
    for seed, part in enumerate(parts[:2]):  # the third process had no example
        for layer in (0, 1):
            part.observe(layer, f"layers.{layer}", "topk", observed(3, seed))
            whole.observe(layer, f"layers.{layer}", "topk", observed(3, seed))
    before = [part.table() for part in parts[:2]]
    for part in parts:
        together.add(part)
    pd.testing.assert_frame_equal(together.table(), whole.table(), check_exact=True)
    for part, then in zip(parts, before, strict=False):
        pd.testing.assert_frame_equal(part.table(), then, check_exact=True)


def test_by_hand_with_a_padded_query() -> None:
    call = seen(
        [[1, 3, 9], [1, 1, 9], [5, 1, 9]],
        valid=rows("xx.", "xx.", "xx."),  # the third token is padding: its row does not count
        keep=rows(".x.", "xx.", "x.."),
    )
    assert measured(call) == pytest.approx(
        {
            "layer": 0,
            "name": "layers.0",
            "method": "topk",
            "head": 0,
            "sparsity": 1 / 4,
            "kept_mass": (3 / 4 + 1) / 2,
            "entropy": math.log(2) / 2,
            "keys_per_row": 3 / 2,
            "branch": 0.0,
            "valid_pairs": 4,
            "rows": 2,
        }
    )


def test_by_hand_causal_and_left_padded() -> None:
    call = seen(
        [[1, 1, 1], [9, 1, 9], [9, 1, 3]],
        valid=rows("...", ".x.", ".xx"),
        keep=rows("...", ".x.", "..x"),
    )
    row = measured(call)
    assert row["sparsity"] == pytest.approx(1 / 3)
    assert row["kept_mass"] == pytest.approx((1 + 3 / 4) / 2)
    assert row["entropy"] == pytest.approx(0)
    assert row["rows"] == 2


def test_each_head_has_its_own_row() -> None:
    call = observed(batch=2, seed=0)
    call.keep[:, 1] = call.valid[:, 1]
    result = Measurement()
    result.observe(0, "layers.0", "topk", call)
    table = result.table()
    assert table["head"].tolist() == [0, 1, 2, 3]
    assert table["sparsity"][1] == 0
    assert table["kept_mass"][1] == pytest.approx(1)
    assert (table["sparsity"][[0, 2, 3]] > 0).all()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_two_calls_measure_what_one_call_on_both_does(first: int, second: int, seed: int) -> None:
    a, b = observed(first, seed), observed(second, seed + 1)
    scores, valid, keep, queries = (
        torch.cat([getattr(a, name), getattr(b, name)]) for name in ("scores", "valid", "keep", "queries")
    )
    both = Observation(Rows.of_scores(scores, valid), keep, queries)
    assert measured(a, b) == pytest.approx(measured(both))


def test_padding_a_batch_further_changes_no_number() -> None:
    short, keep = rows("xxx", "xxx", "xxx"), rows("xx.", "x..", ".xx")
    odds = [[1, 2, 3], [4, 1, 1], [2, 2, 7]]
    wide = [[*row, 5, 5] for row in odds] + [[1.0] * 5] * 2
    padded = rows(*["xxx.."] * 5)
    kept = rows("xx...", "x....", ".xx..", "x....", "x....")
    assert measured(seen(wide, padded, kept)) == pytest.approx(measured(seen(odds, short, keep)))


def test_an_observation_counts_what_topk_kept() -> None:
    call = observed(batch=1, seed=4, sparsity=0.5, length=4)
    n = int(call.valid[0, 0, 0].sum())
    assert measured(call)["sparsity"] == pytest.approx(1 - math.ceil(n / 2) / n)


def test_the_summary_weighs_pairs_and_rows_over_layers() -> None:
    result = Measurement()
    result.observe(0, "a", "topk", seen([[1, 3], [1, 3]], rows("xx", "xx"), rows(".x", ".x")))
    result.observe(1, "b", "topk", seen([[1, 1, 1, 1]], rows("xxxx"), rows("xxxx")))
    assert result.summary() == pytest.approx(
        {"sparsity": 2 / 8, "kept_mass": (2 * 3 / 4 + 1) / 3, "entropy": math.log(4) / 3}
    )


def test_mass_and_entropy_of_scores_that_are_not_finite_are_not_known() -> None:
    result = Measurement()
    result.observe(0, "a", "topk", seen([[1, 3], [1, 3]], rows("xx", "xx"), rows("xx", "xx")))
    result.observe(1, "b", "topk", seen([[math.nan] * 2] * 2, rows("xx", "xx"), rows("xx", "xx")))
    summary = result.summary()
    assert math.isnan(summary["kept_mass"])
    assert math.isnan(summary["entropy"])


def test_dense_keeps_all_the_mass_and_its_entropy_is_between_zero_and_log_n() -> None:
    call = observed(batch=3, seed=2, sparsity=0.0)
    totals = LayerTotals.of(call)
    assert totals.kept_mass.allclose(totals.rows)
    assert (totals.entropy > 0).all()
    assert (totals.entropy / totals.rows < math.log(7)).all()


def test_an_empty_measurement_says_what_was_missing() -> None:
    for read in (Measurement().table, Measurement().summary):
        with pytest.raises(ValueError, match=r"nothing was measured: .*crisp\.measuring"):
            read()
