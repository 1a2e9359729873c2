"""The scores of a predicted graph, by hand."""

import itertools

import numpy as np
import pytest
import torch

from crisp_attention import Entmax, Method, TopK, Window
from crisp_attention.insight.graphs import FullGraph, GraphScores
from crisp_attention.methods.rows import Rows
from tests import oracle


@pytest.mark.parametrize("rule", [Entmax(1.5), TopK(0.6)], ids=str)
def test_they_are_what_loops_count(rule):
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    real = torch.arange(9) < torch.tensor([[[[9]]], [[[6]]]])
    method = Method(Window(3, global_tokens=1), rule)
    found = FullGraph.of(method.rule, Rows(query, key, mask=real), value).scores(method.layout)
    given = {"scale": 1.0, "valid": real}
    _, used = oracle.attention(query, key, value, method, **given)
    _, wanted = oracle.attention(query, key, value, Method(rule=rule), **given)
    for b, h in itertools.product(range(2), range(3)):
        n = (9, 6)[b]
        gold = wanted[b, h, :n, :n].numpy() > 0
        seen = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1
        seen[0], seen[:, 0] = True, True
        full = wanted[b, h, :n] @ value[b, h]
        change = used[b, h, :n] @ value[b, h] - full
        for name, number in {
            "sparsity": 1 - seen.mean(),
            "gold_sparsity": 1 - gold.mean(),
            "recall": (seen & gold).sum() / gold.sum(),
            "precision": (seen & gold).sum() / seen.sum(),
            "exact": np.mean([not (gold[i] & ~seen[i]).any() for i in range(n)]),
            "kept_mass": (wanted[b, h, :n, :n].numpy() * seen).sum() / n,
            "output_error": float(change.norm() / full.norm()),
        }.items():
            assert getattr(found, name)[b, h].item() == pytest.approx(number, abs=1e-6), name


def test_means_leave_out_what_is_not_defined():
    one = torch.ones(2, 1)
    nothing = torch.tensor([[torch.nan], [0.5]])
    assert GraphScores(one, one, one, nothing, one, one, one).means()["precision"] == [0.5]
