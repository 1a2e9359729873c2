"""Pruned layers and models: what is timed computes the same, and what is counted is what is there."""

import pytest
import torch

from crisp_attention.bench import pruned
from crisp_attention.bench.contender import CRISP, DENSE
from crisp_attention.bench.pruned import Layer, Whole, measure_pruned
from crisp_attention.bench.rounds import Effort
from crisp_attention.pruning import BlockLinear

LEAST = Effort(3, 0)


def measured(monkeypatch, *asked):
    layers, models = (tuple(each for each in asked if isinstance(each, kind)) for kind in (Layer, Whole))
    monkeypatch.setattr(pruned, "planned", lambda quick: (layers, models))
    return measure_pruned(LEAST, True, lambda what: None)


def test_a_layer_of_blocks_for_many_rows_and_for_one(monkeypatch) -> None:
    asked = [Layer(64, 96, 5, 0.5), Layer(64, 96, 1, 0.5), Layer(64, 96, 5, 0.75, groups="2:4")]
    many, one, both = measured(monkeypatch, *asked)
    for each in (many, one, both):
        assert [timed.name for timed in each.timed] == [DENSE, CRISP]
        assert each.subject == "64 to 96"
    assert (many.sparsity, both.sparsity, both.pattern) == (0.5, 0.75, "2:4 in blocks of 32")
    for each, block in (
        (many, 32 * 32 * 4),
        (both, 32 * 32 * 4 / 2 + 32 * 4),
    ):  # with two bits of place a weight
        assert each.layer_bytes == (3 * (block + 4) + 96 * 4) / (64 * 96 * 4 + 96 * 4)


def test_what_computes_something_else_is_not_timed(monkeypatch) -> None:
    right = BlockLinear.forward
    monkeypatch.setattr(BlockLinear, "forward", lambda self, states: 1.01 * right(self, states))
    with pytest.raises(RuntimeError, match=r"compressed and dense outputs differ by 1\.0e-02 of the largest"):
        measured(monkeypatch, Layer(64, 96, 5, 0.5))
    with pytest.raises(RuntimeError, match="differ by nan"):
        pruned.check(torch.ones(2), torch.tensor([1.0, torch.nan]))


@pytest.mark.slow
def test_a_model_alone_and_with_sparse_attention(monkeypatch) -> None:
    alone, joint = measured(monkeypatch, Whole(1, 64, 0.9), Whole(1, 64, 0.9, attention=0.5))
    assert (alone.subject, joint.subject) == ("MiniLM", "MiniLM with block top-k")
    for each in (alone, joint):
        assert each.sparsity == pytest.approx(0.9, abs=0.01)
        assert each.layer_bytes == pytest.approx(0.1, abs=0.01)
        assert each.saved_layer_bytes == each.layer_bytes
        assert 0.5 < each.saved_bytes < 0.62


def test_without_the_package_of_minilm_it_says_so(monkeypatch) -> None:
    def missing():
        raise pruned.CheckpointError("needs a package")

    monkeypatch.setattr(pruned, "minilm_folder", missing)
    (found,) = measured(monkeypatch, Whole(1, 64, 0.9))
    assert (found.timed, found.absent[0].reason) == ([], "needs a package")
