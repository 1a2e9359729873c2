"""Rows long enough for lists of the scores close to a guess: the CPU kernel keeps what the reference keeps."""

from dataclasses import replace

import pytest
import torch

from crisp_attention import TopK, TopP
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.plan import counts_of
from crisp_attention.methods.method import as_method
from tests.cases import normal

KEYS, LENGTH = 1031, 12
DRAWN = normal(LENGTH, KEYS, seed=4)
PLACES = torch.arange(KEYS)
ROWS = {
    "normal": DRAWN,
    "16 values": DRAWN[:, PLACES * 7 % 16],
    "quantised": (DRAWN * 2).round() / 2,
    "two values": (DRAWN > 0.6).double(),
    "equal": torch.ones(LENGTH, KEYS).double(),
    "one outlier": DRAWN.index_fill(1, torch.tensor([3]), 30.0),
    "one far below": DRAWN.index_fill(1, torch.tensor([3]), -1000.0),
    "heavy tails": (DRAWN * normal(LENGTH, KEYS, seed=5) ** 3).clamp(-20, 20),
    "sharp": DRAWN * 6,
    "two clusters": DRAWN / 256 + 8 * (normal(LENGTH, KEYS, seed=6) > 0),
    "nearly equal": 1 + DRAWN * 2.0**-22,
    "rising": PLACES.expand(LENGTH, -1).double() / 64,
}
RULES = [TopK(0.8), TopK(0.5), TopK(0.98), TopK(keep=1), TopK(keep=1030), TopP(0.05), TopP(0.56), TopP(0.97)]


def call_of(kind: str, rule, **more) -> Call:
    """A call with these scores, exactly, whose output is the weights."""
    scores = ROWS[kind].float().T[None, None].contiguous()
    values = torch.eye(KEYS)[None, None]
    return Call(torch.eye(LENGTH)[None, None], scores, values, as_method(rule), 1.0, **more)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("mask", ["none", "causal", "any"])
def test_the_same_keys_are_kept_of_rows_of_every_kind(rule, kind, mask) -> None:
    more = {"valid": (normal(LENGTH, KEYS, seed=7) > -1)[None, None]} if mask == "any" else {}
    call = call_of(kind, rule, causal=mask == "causal", **more)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    assert (found > 0).equal(wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["normal", "quantised", "two values", "one outlier"])
@pytest.mark.parametrize("more", ["nothing", "sinks", "bias", "softcap", "causal", "mask"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_rows_weighed_in_place_have_the_gradients_of_float64(kind, more, sparsity) -> None:
    call = replace(call_of(kind, TopK(sparsity)), value=normal(1, 1, KEYS, 24, seed=8, dtype=torch.float32))
    bias = (normal(1, 1, LENGTH, KEYS, seed=9) * 8).round() / 8
    leaves = {"query": call.query, "key": call.key, "value": call.value}
    leaves |= {"sinks": {"sinks": torch.tensor([1.5])}, "bias": {"bias": bias.float()}}.get(more, {})
    given = {
        "softcap": {"softcap": 20.0},
        "causal": {"causal": True},
        "mask": {"valid": (normal(LENGTH, KEYS, seed=7) > 3.2)[None, None]},  # some rows see nothing
    }.get(more, {})
    grads = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, dispatch.REFERENCE)):
        own = {name: each.to(dtype).requires_grad_() for name, each in leaves.items()}
        output = dispatch.attention(replace(call, **own, **given), backend)[0]
        along = torch.linspace(-1, 1, 24, dtype=dtype).expand_as(output)
        grads.append((output.detach(), *torch.autograd.grad(output, tuple(own.values()), along)))
    for ours, right in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5)


def with_scores_at_the_edge(keys: int, kept: int) -> torch.Tensor:
    """A row whose first list of scores would begin at one of them, of which some have neighbours that are equal."""
    near, edge = 100, torch.tensor(-8.0)
    draw = torch.Generator().manual_seed(1)
    others = torch.randn(760, generator=draw) * 0.1 + 1, torch.rand(keys - 760 - near, generator=draw) - 10
    guess, pace = counts_of(0.0, 1, kept, keys)[1][keys]
    for _ in range(
        30
    ):  # the edge is where mean and deviation of the row, with scores about the edge, have it
        row = torch.cat(
            [others[0], edge + torch.arange(near).sub(near // 2).div(4).floor() * 2.0**-20, others[1]]
        )
        mean, spread = row.double().mean(), row.double().std(correction=0)
        edge = (mean + spread * float(guess) - 2 * keys**0.5 * spread * float(pace)).float()
    return row


def test_a_list_that_ends_among_equal_scores() -> None:
    keys, kept = 1024, 900
    row = with_scores_at_the_edge(keys, kept)
    shuffled = torch.stack(
        [row[torch.randperm(keys, generator=torch.Generator().manual_seed(i))] for i in range(16)]
    )
    for rule in (TopK(keep=kept), TopK(1 - kept / keys)):
        call = Call(
            torch.eye(16)[None, None],
            shuffled.T[None, None].contiguous(),
            torch.eye(keys)[None, None],
            as_method(rule),
            1.0,
        )
        assert ((dispatch.attention(call, "cpu")[0] > 0).sum(dim=-1) == kept).all()


def test_zeros_of_either_sign_are_equal() -> None:
    key = torch.zeros(1, 1, 1024, 16)
    some = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[200:]
    key[0, 0, some, 0] = torch.rand(824, generator=torch.Generator().manual_seed(1)) / 2 + 1
    for rule in (TopK(keep=100), TopK(0.9), TopP(0.3)):
        call = Call(torch.ones(1, 1, 1, 16), key, torch.eye(1024)[None, None], as_method(rule), -1.0)
        wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
        assert (dispatch.attention(call, "cpu")[0] > 0).equal(wanted > 0)
