"""What enters the scores beside products, on the CPU kernel: softcaps, biases that learn, and sinks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention.kernels import cpu, dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Dense, Entmax, Threshold, TopK, TopP
from tests.cases import normal

FLOAT = torch.float32
RULES = {"dense": Dense(), "topk": TopK(0.6), "topp": TopP(0.7), "threshold": Threshold(0.05)}


def call_of(rule: object, **more: object) -> Call:
    query, key, value = (
        normal(2, heads, 21, 16, seed=seed, dtype=FLOAT) for seed, heads in enumerate((4, 2, 2))
    )
    return Call(query, key, value, Method(rule=rule), scale=0.25, **more)  # type: ignore[arg-type]


def both(call: Call, leaf: str) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and all gradients of the CPU kernel, and of the reference in float64."""
    found = []
    for dtype, attention in (
        (torch.float32, cpu.attention),
        (torch.float64, lambda each: dispatch.attention(each, dispatch.REFERENCE)[0]),
    ):
        names = ["query", "key", "value", leaf]
        leaves = {name: getattr(call, name).detach().to(dtype).requires_grad_() for name in names}
        rest = {"bias": call.bias.to(dtype)} if call.bias is not None and leaf != "bias" else {}
        output = attention(replace(call, **rest, **leaves))
        output.square().sum().backward()
        found.append([output.detach().double(), *(leaves[name].grad.double() for name in names)])
    return found[0], found[1]


def agree(call: Call, leaf: str) -> None:
    assert cpu.lacks(call) is None
    for ours, exact in zip(*both(call, leaf), strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    "shape", [(2, 4, 21, 21), (1, 4, 21, 21), (1, 1, 1, 21), (4, 1, 1), (2, 1, 21, 1)], ids=str
)
def test_a_bias_of_any_shape_learns(rule, shape) -> None:
    agree(
        call_of(rule, bias=normal(*shape, seed=7, dtype=FLOAT), softcap=1.5, causal=len(shape) == 3), "bias"
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("softcap", [None, 0.8])
def test_sinks_learn(rule, softcap) -> None:
    sinks = torch.tensor([-3.0, 0.0, 1.0, 9.0])
    valid = torch.arange(21) < torch.tensor([21, 13])[:, None, None, None]
    agree(call_of(rule, sinks=sinks, softcap=softcap, valid=valid), "sinks")
    agree(call_of(rule, sinks=sinks, bias=normal(1, 4, 21, 21, seed=3, dtype=FLOAT)), "sinks")


def test_a_sink_takes_all_from_scores_of_minus_infinity_and_none_from_empty_rows() -> None:
    bias = torch.zeros(1, 1, 21, 21)
    bias[..., 4, :] = -torch.inf
    valid = torch.arange(21)[:, None] != 5
    call = call_of(Dense(), sinks=torch.zeros(4), bias=bias, valid=valid.expand(1, 1, 21, 21))
    (output, *slopes), (exact, *_) = both(call, "sinks")
    assert (output[:, :, 4:6] == 0).all()
    torch.testing.assert_close(output, exact, rtol=1e-4, atol=1e-5)
    assert all(each.isfinite().all() for each in slopes)
    for broken in (torch.inf, torch.nan):
        sinks = torch.tensor([0.0, broken, 0.0, 0.0])
        rows = cpu.attention(replace(call, sinks=sinks)).isnan().flatten(2).any(dim=-1)
        assert rows.tolist() == [[False, True, False, False]] * 2


def test_a_softcap_saturates_and_keeps_what_is_broken() -> None:
    call = call_of(TopK(0.5), softcap=2.0)
    wide = replace(call, query=1e4 * call.query, method=Method())
    torch.testing.assert_close(
        cpu.attention(wide), dispatch.attention(wide, dispatch.REFERENCE)[0], rtol=1e-5, atol=1e-5
    )
    call.key[0, 0, 3] = torch.nan
    assert cpu.attention(call)[0, :2].isnan().all()
    assert cpu.attention(call)[1].isfinite().all()


def test_entmax_with_sinks_is_left_to_the_reference() -> None:
    assert cpu.lacks(call_of(Entmax(), sinks=torch.zeros(4))) == "entmax with attention sinks"
    assert cpu.lacks(call_of(Entmax(), softcap=2.0)) is None
