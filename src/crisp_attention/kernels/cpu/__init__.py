"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import lacks_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.plan import LANES, code_of
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.part import called

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lacks(call: Call) -> str | None:
    """What this kernel cannot do of the call, None if it can."""
    if call.query.device.type != "cpu":
        return f"the device {call.query.device.type}"
    if call.query.dtype not in DTYPES:
        return f"{call.query.dtype}"
    if 0 in call.query.shape or 0 in call.key.shape:
        return "empty tensors"
    if isinstance(call.method, PerHead):
        return "methods by head"
    if missing := lacks_blocks(call, call.method.layout):
        return missing
    if call.blocks is not None and call.bias is not None:
        return "blocks with a bias"
    if code_of(call.method.rule) is None:
        return f"the rule {called(call.method.rule)}"
    if call.softcap is not None or call.sinks is not None:
        return "softcap and sinks"
    if call.bias is not None and call.bias.requires_grad:
        return "a bias that learns"
    return None


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) in the query's dtype; scores, selection and weights are float32."""
    from crisp_attention.kernels.cpu.operators import rows

    assert not isinstance(call.method, PerHead)
    code = code_of(call.method.rule)
    assert code is not None
    query, key, value = (states.float() for states in (call.query, call.key, call.value))
    valid, graph = call.valid, call.blocks
    listed = counts = None
    if (
        graph is not None and graph.blocks.size % LANES
    ):  # a mask for each pair, which small blocks are best as
        valid, graph = graph.pairs() if valid is None else graph.pairs() & valid, None
    if graph is not None:
        valid, (counts, listed) = None, graph.listed()
        query, key, value = map(graph.blocks.in_order, (query, key, value))
    seed = torch.zeros((), dtype=torch.int64, device=query.device)
    if call.dropout > 0:  # without it torch's generator is left alone
        seed = call.draw()
    output, *_ = rows(
        query,
        key,
        value,
        valid,
        None if call.bias is None else call.bias.float(),
        listed,
        counts,
        None if graph is None else graph.blocks.lengths,
        seed,
        *code,
        call.causal,
        call.scale,
        call.dropout,
        0 if graph is None else graph.blocks.size,
    )
    if graph is not None:
        output = graph.blocks.back(output)
    return output.to(call.query.dtype)
