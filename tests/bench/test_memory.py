"""Memory: of every method at one length, dense once for all, and nothing is started that cannot fit."""

from pathlib import Path

import pytest
import torch

from crisp_attention import LSH, Method, RandomK, TopK
from crisp_attention.bench import children, roster
from crisp_attention.bench.bars import MEMORY_LENGTH
from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import CRISP, DENSE, MATRICES, as_it_is_held, crisp, dense
from crisp_attention.bench.options import BenchOptions
from crisp_attention.bench.plan import LINEAR, LINEAR_CAUSAL, planned
from crisp_attention.methods.layouts import ALL as LAYOUTS
from crisp_attention.methods.rules import ALL as RULES

TOPK = Method(rule=TopK(0.5))
SMALL = Shape(1, 2, 64, 16)


def test_every_rule_and_every_layout_that_is_not_fitted_is_measured() -> None:
    cases = planned(BenchOptions(output=Path("nowhere"))).memory
    linear = [each for each in cases if each.shape.length == MEMORY_LENGTH]
    assert len(linear) == len(LINEAR) + len(LINEAR_CAUSAL)
    assert sum(each.shape.causal for each in linear) == len(LINEAR_CAUSAL)
    fitted = {"sparsefinder", "routing"}
    assert {each.method.layout.name for each in linear} == {each.name for each in LAYOUTS} - fitted
    assert {each.method.rule.name for each in linear} == {each.name for each in RULES}


def test_named_methods_are_measured_in_place_of_those() -> None:
    cases = planned(BenchOptions(output=Path("nowhere"), method=("topp",))).memory
    assert [(each.method.rule.name, each.shape.length) for each in cases] == [("topp", 16384)]


def test_dense_is_measured_once_for_a_shape(monkeypatch) -> None:
    asked = []

    def probe(what, contender, case, backward, environment=None):
        asked.append((contender, case.shape.causal, backward))
        return {"bytes": 100 if contender == DENSE else 120, "counter": "VmHWM"}

    monkeypatch.setattr(children, "_probe", probe)
    causal = Shape(1, 2, 64, 16, causal=True)
    found = children.measure_memory(
        [Case(TOPK, SMALL, True), Case(TOPK, SMALL, True), Case(TOPK, causal, True)], lambda what: None
    )
    assert [each.ratio for each in found] == [1.2] * 6
    assert sum(name == DENSE for name, *_ in asked) == 4  # forward and with backward, of two shapes
    assert sum(name == CRISP for name, *_ in asked) == 6
    assert (CRISP, True, True) in asked


def test_what_the_reference_would_compute_is_not_started_where_its_scores_do_not_fit(monkeypatch) -> None:
    by_reference = Shape(1, 2, 64, 16, dtype="float64")
    assert as_it_is_held(TOPK, SMALL).matrices == 0
    assert (
        as_it_is_held(Method(rule=RandomK(0.8)), SMALL).matrices == 0
    )  # if it is given a seed, as a call is
    assert as_it_is_held(Method(LSH(4)), by_reference).matrices == MATRICES
    monkeypatch.setattr(roster, "free_bytes", lambda device: MATRICES * by_reference.matrix_bytes - 1)
    monkeypatch.setattr(children, "_probe", lambda *given: pytest.fail("started"))
    answer = children._peak(CRISP, Case(Method(LSH(4)), by_reference, True), False)
    assert answer == {"absent": "needs about 0 GiB, only 0 GiB are free"}


def test_causal_shapes_are_computed_causally() -> None:
    query, key, value = SMALL.inputs()
    ours, theirs = (
        each.attend(query, key, value) for each in (crisp(Method(), causal=True), dense(causal=True))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, dense().attend(query, key, value), atol=1e-2)
