"""What the CPU's row kernel keeps of rows of every kind is what the reference keeps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import NofM, RandomK, TopK, TopP
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method
from tests.cases import normal

KEYS = 203
DRAWN = normal(24, KEYS, seed=4)
ROWS = {
    "normal": DRAWN,
    "quantised": (DRAWN * 4).round() / 4,
    "two values": (DRAWN > 0.6).double(),
    "one outlier": DRAWN.index_fill(1, torch.tensor([3]), 400.0),
    "one far below": DRAWN.index_fill(1, torch.tensor([3]), -400.0),
    "heavy tails": DRAWN * normal(24, KEYS, seed=5) ** 5,
    "two clusters": DRAWN / 256 + 16 * (normal(24, KEYS, seed=6) > 0),
    "nearly equal": 1 + DRAWN * 2.0**-22,
    "rising": torch.arange(KEYS).expand(24, -1).double(),
}
RULES = {
    str(rule): rule
    for rule in (
        *(TopK(0.8), TopK(0.5), TopK(keep=1), TopK(keep=202), TopP(0.01), TopP(0.3), TopP(0.9)),
        *(NofM(2, 4), NofM(1, 5), NofM(7, 16), NofM(11, 13), NofM(3, 3)),
        *(NofM(1, 17), NofM(8, 64), NofM(60, 64), NofM(64, 256)),
    )
}


def call_of(scores: Tensor, rule, **more) -> Call:
    """A call with these scores (L, S), exactly, whose output is the weights."""
    length, keys = scores.shape
    scores = scores / max(1.0, float(scores.abs().max()) / 40)  # so that no weight is rounded to 0
    query = torch.eye(length)[None, None]
    return Call(
        query,
        scores.float().T[None, None].contiguous(),
        torch.eye(keys)[None, None],
        as_method(rule),
        1.0,
        **more,
    )


SEEDS = {
    "one": torch.tensor(11),
    "of each example": torch.tensor([[[[2**31 - 1]]], [[[5]]]]),
    "of each query": torch.randint(2**31, (2, 1, 45, 1), generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("rule", [RandomK(0.8), RandomK(0.4, min_keep=9), RandomK(keep=7)], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "left", "right", "any"])
def test_the_same_keys_are_drawn(rule, seed, mask) -> None:
    rows, columns = torch.arange(45), torch.arange(300)
    seen = {
        "left": columns >= torch.tensor([70, 0])[:, None],
        "right": columns < torch.tensor([70, 300])[:, None],
        "any": normal(2, 300, seed=7) > 0,
    }
    more = {"valid": seen[mask][:, None, None]} if mask in seen else {"causal": mask == "causal"}
    query, key = normal(2, 4, 45, 24, dtype=torch.float32), normal(2, 2, 300, 24, seed=1, dtype=torch.float32)
    value = torch.eye(300).expand(2, 2, 300, 300)
    bias = normal(1, 4, len(rows), 300, seed=3, dtype=torch.float32)
    call = Call(query, key, value, as_method(rule), 0.2, seed=seed, bias=bias, heads=(3, 1, 6, 2), **more)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    assert (found > 0).equal(wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_drawing_needs_a_seed() -> None:
    call = Call(*torch.ones(3, 1, 1, 8, 16), as_method(RandomK(0.5)), 1.0)
    assert dispatch.lacks("cpu", call) == "a seed"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("mask", ["none", "causal", "padded", "any"])
def test_the_same_keys_are_kept_of_rows_of_every_kind(rule, kind, mask) -> None:
    seen = {"padded": torch.arange(KEYS) >= 61, "any": normal(24, KEYS, seed=7) > 0}
    more = {"valid": seen[mask][None, None]} if mask in seen else {"causal": mask == "causal"}
    call = call_of(ROWS[kind], rule, **more)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    assert (found > 0).equal(wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [TopK(0.5), NofM(2, 4), TopK(0.8)], ids=str)
def test_a_value_that_is_not_finite_spoils_only_the_rows_that_keep_it(rule) -> None:
    call = call_of(DRAWN, rule)
    keeps = dispatch.attention(call, "cpu")[0][..., 5] > 0
    query = call.query.requires_grad_()
    value = call.value.index_fill(2, torch.tensor([5]), torch.inf)
    found = dispatch.attention(replace(call, query=query, value=value), "cpu")[0]
    assert found.isfinite().all(dim=-1).equal(~keeps)
    found.sum().backward()
    assert query.grad.isfinite().all(dim=-1).equal(~keeps)
    assert 0 < keeps.sum() < keeps.numel()


@pytest.mark.parametrize("rule", [TopK(0.5), NofM(2, 4), NofM(5, 7), NofM(8, 64), NofM(9, 21)], ids=str)
def test_gradients_are_those_of_float64(rule) -> None:
    states = [
        normal(2, 4, length, 24, seed=i, dtype=torch.float32) for i, length in enumerate((45, 150, 150))
    ]
    seen = (torch.arange(150) < torch.tensor([150, 67])[:, None])[:, None, None]
    grads = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, dispatch.REFERENCE)):
        leaves = [each.to(dtype).requires_grad_() for each in states]
        output = dispatch.attention(Call(*leaves, as_method(rule), 0.2, valid=seen), backend)[0]
        grads.append(
            torch.autograd.grad(output, leaves, torch.linspace(-1, 1, 24, dtype=dtype).expand_as(output))
        )
    for ours, right in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5)
