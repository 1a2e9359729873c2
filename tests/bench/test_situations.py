"""Situations: what is asked of each, that what is timed computes the same, and what it is compared with."""

from dataclasses import replace

import pytest
import torch

from crisp_attention import Dense, Entmax, TopK, Window
from crisp_attention.bench import decoding, situated, situations
from crisp_attention.bench.bars import SITUATIONS
from crisp_attention.bench.contender import CRISP, DENSE
from crisp_attention.bench.rounds import Effort
from crisp_attention.bench.row_kinds import KINDS, LEVELS, TRAINED, drawn, trained
from crisp_attention.bench.situated import disagreement, measure_situations
from crisp_attention.bench.situation import FILLED, Situation
from crisp_attention.kernels import dispatch
from crisp_attention.methods.method import as_method
from crisp_attention.runs.sources import minilm_folder

LEAST = Effort(3, 0)
TOPK = TopK(0.5)


def situation(method=TOPK, queries=32, **more) -> Situation:
    return Situation(
        "rows", "a row", "a size", as_method(method), queries, heads=4, groups=2, width=8, **more
    )


def measured(*asked):
    return measure_situations(list(asked), LEAST, lambda what: None)


def test_every_bar_is_of_something_that_is_measured() -> None:
    planned = {
        (each.row, each.size) for part in situations.PARTS for each in situations.planned(part, quick=False)
    }
    planned |= {(f"{decoding.ROW}, {name}", f"after {n:,}") for name, n in decoding.planned(quick=False)}
    assert planned == set(SITUATIONS)


def test_a_quick_run_has_a_few_of_each_part_but_decoders() -> None:
    few = {part: len(situations.planned(part, quick=True)) for part in situations.PARTS}
    assert few == {"decoders": 0, "generation": 2, "padded": 1, "rows": 2}
    assert sum(few.values()) == len(situations.QUICK)


def test_a_padded_batch_is_filled_as_it_says() -> None:
    real = situation(queries=128, batch=32, mask="padding").valid()
    assert real.shape == (32, 1, 128, 128)
    lengths = real[:, 0, 0].sum(dim=-1)
    assert lengths.float().mean() / 128 == pytest.approx(FILLED, abs=0.03)
    assert (int(lengths.min()), int(lengths.max())) == (1, 128)
    assert real[:, 0, 0].equal(torch.arange(128) < lengths[:, None])


def test_masks_of_decoders() -> None:
    triangle = situation(mask="triangle").valid()
    assert triangle.equal(torch.ones(32, 32, dtype=torch.bool).tril()[None, None])
    padded = situation(mask="triangle and padding", batch=2)
    valid = padded.valid()
    assert valid[0].equal(triangle[0])
    assert not valid[1, 0, :, :4].any()
    assert padded.real(valid)[1].flatten().tolist() == [0.0] * 4 + [1.0] * 28
    assert situation(mask="causal").valid() is None


@pytest.mark.parametrize("mask", ["none", "causal", "triangle", "triangle and padding", "padding"])
def test_ours_and_dense_are_the_same_where_nothing_is_dropped(mask) -> None:
    asked = situation(Dense(), batch=3, mask=mask)
    for backward in (False, True):
        found = zip(asked.ours().compared(backward), asked.dense().compared(backward), strict=True)
        for one, other in found:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_of_each_kind() -> None:
    def keys(kind):
        return drawn(kind, (1, 2, 64, 8), torch.Generator().manual_seed(0))

    assert len(keys("ties")[0, 0].unique(dim=0)) <= 16
    assert len(keys(LEVELS).unique()) == 8
    lengths = keys("one outlier").norm(dim=-1)
    assert int(lengths[0, 0].argmax()) == 32
    assert lengths[0, 0, 32] > 20 * lengths[0, 0].median()
    assert keys("heavy tails").abs().max() > 3 * keys("normal").abs().max()
    assert keys("heavy tails").equal(keys("heavy tails"))


def test_rows_of_a_trained_model() -> None:
    pytest.importorskip("tokenizers")
    try:
        minilm_folder()
    except situated.CheckpointError as reason:
        pytest.skip(str(reason))
    query, key, _ = trained(600, heads=3)
    assert query.shape == key.shape == (1, 3, 600, 32)
    scores = query @ key.mT / 32**0.5
    assert scores.std() > 1.5  # random ones have a deviation of one
    assert not query[:, :, :88].equal(query[:, :, 512:])  # another text, and not the first again


def test_yardsticks_have_names_and_come_first() -> None:
    odd = situation(yardstick="wider")
    assert list(odd.contenders()) == ["crisp, width 16", DENSE, CRISP]
    assert odd.contenders()["crisp, width 16"].states[0].shape[-1] == 16
    ties = situation(rows="ties", yardstick="normal")
    assert list(ties.contenders()) == ["crisp, normal rows", DENSE, CRISP]
    forward, both = measured(ties)
    assert [each.name for each in forward.timed] == ["crisp, normal rows", DENSE, CRISP]
    assert (forward.backward, both.backward) == (False, True)
    assert forward.ratio == forward.timed[2].ratio.median
    assert forward.yardstick.ratio.median == 1


def test_the_gradient_of_what_is_learned_is_timed_too() -> None:
    asked = situation(Entmax("learned"))
    *_, of_alpha = asked.ours().compared(backward=True)
    assert of_alpha.shape == (4,)
    assert of_alpha.abs().min() > 0


def test_one_token_has_no_backward_pass() -> None:
    (found,) = measured(situation(Window(5), queries=1, keys=40, gradients=False))
    assert (found.backward, found.absent) == (False, [])
    assert found.ratio > 0


def test_what_computes_something_else_is_not_timed(monkeypatch) -> None:
    right = dispatch.attention

    def attention(call, backend="auto", **more):
        output, weights = right(call, backend, **more)
        return (output if backend == dispatch.REFERENCE else 1.01 * output), weights

    monkeypatch.setattr(dispatch, "attention", attention)
    forward, _ = measured(situation())
    assert forward.timed == []
    assert forward.ratio is None
    assert "wrong: differs from the reference by 1.0e-02 of the norm" in forward.absent[0].reason
    assert "nan" in disagreement((torch.tensor([torch.nan]),), (torch.ones(1),))


def test_a_decoder_token_by_token(monkeypatch) -> None:
    monkeypatch.setattr(decoding, "WIDTH", 64)
    monkeypatch.setattr(decoding, "LAYERS", 2)
    said = []
    blocks, window = decoding.measure_decoder(LEAST, True, said.append)
    assert said == [f"decoder of 4 layers, {name}, after 128 tokens" for name in ("blocks", "window")]
    for each in (blocks, window):
        assert each.absent == []
        assert [timed.name for timed in each.timed] == [DENSE, CRISP]
        assert (each.part, each.size) == ("generation", "after 128")


def test_shapes_of_the_comparison_are_small_and_alike() -> None:
    large = replace(situation(queries=4096), heads=32, groups=8, batch=32)
    assert (large.small.heads, large.small.groups, large.small.queries, large.small.batch) == (8, 2, 512, 4)
    assert replace(large, queries=1, keys=4096).small.keys == 512


def test_kinds_of_rows_are_those_of_the_plan() -> None:
    rows = {each.rows for each in situations.planned("rows", quick=False)}
    assert rows == {"normal", *KINDS}
    assert TRAINED in rows
