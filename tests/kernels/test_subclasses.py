"""A rule or layout that somebody derived from one of ours is what they wrote, and never what it was derived from."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import Dense, Method
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods import layouts, rules
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.method import as_method
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule
from crisp_attention.testing.calls import METHODS as EVERY_METHOD
from crisp_attention.testing.calls import Case

NEEDED = {
    "topp": {"mass": 0.5},
    "threshold": {"epsilon": 0.5},
    "nofm": {"n": 1, "m": 2},
    "window": {"width": 3},
}


def derived(parent: type[Rule] | type[Layout]) -> Rule | Layout:
    """One of a class that keeps, or shows, the first valid key alone, whatever its parent does."""

    class First(parent):
        def select(self, rows: Rows, visible: Tensor) -> Tensor:
            return (visible & (visible.cumsum(dim=-1) == 1)).expand_as(rows.scores)

        def visible(self, rows: Rows) -> Tensor:
            return rows.valid & (rows.key_positions == 1)

        def weigh(self, rows: Rows, keep: Tensor) -> Tensor:
            return keep.to(rows.scores.dtype)

    return First(**NEEDED.get(parent.name, {}))


PARENTS = [*rules.ALL, *layouts.ALL]
every_parent = pytest.mark.parametrize("parent", PARENTS, ids=lambda parent: parent.name)


@every_parent
def test_it_is_computed_as_it_is_written(parent) -> None:
    method = as_method(derived(parent))
    query, key, value = torch.randn(3, 2, 4, 48, 16)
    if not method.uses_seed:
        assert all(dispatch.lacks(kernel, Call(query, key, value, method, scale=1.0)) for kernel in KERNELS)
    assert crisp.attention(query, key, value, method).equal(value[:, :, :1].expand_as(value))
    mate = as_method(parent(**NEEDED.get(parent.name, {})))
    if mate.has_parameters:
        mate = as_method(Dense())
    heads = PerHead((method, mate, method, method))
    assert crisp.attention(query, key, value, heads)[:, ::2].equal(value[:, ::2, :1].expand(-1, -1, 48, -1))


@every_parent
def test_it_is_neither_called_nor_saved_as_its_parent(parent) -> None:
    method = as_method(derived(parent))
    assert method != as_method(parent(**NEEDED.get(parent.name, {})))
    assert "First" in method.name
    for ask in (Method.to_dict, lambda each: each.spec):
        with pytest.raises(ValueError, match=r"First has no name of its own, so it cannot be saved"):
            ask(method)


def test_a_kernel_that_computes_a_method_does_not_compute_what_is_derived_from_it() -> None:
    """Without this the test above could not fail for rules and layouts that no kernel has."""
    taken = set()
    for method in EVERY_METHOD.values():
        call = Case(64, width=32).call(method)
        for kernel in KERNELS:
            if dispatch.lacks(kernel, call) is None:
                other = replace(method, rule=derived(type(method.rule)))
                assert dispatch.lacks(kernel, replace(call, method=other)) is not None
                taken.add((kernel, method.name))
    assert {("cpu", "topk"), ("cpu", "nofm"), ("cpu", "block_topk"), ("flex", "block_topk")} <= taken
    assert Dense() != derived(Dense)
