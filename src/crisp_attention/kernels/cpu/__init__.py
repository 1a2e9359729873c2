"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import lacks_blocks, visible_pairs
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import linear
from crisp_attention.kernels.cpu.plan import LANES, code_of
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method
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
    if call.blocks is not None:
        if call.blocks.blocks.size > LANES and call.blocks.blocks.size % LANES:
            return f"blocks of {call.blocks.blocks.size} keys (fewer than {LANES} or a multiple are needed)"
        if call.bias is not None:
            return "blocks with a bias"
    if code_of(call.method.rule) is None:
        return f"the rule {called(call.method.rule)}"
    if call.softcap is not None or call.sinks is not None:
        return "softcap and sinks"
    if call.bias is not None and call.bias.requires_grad:
        return "a bias that learns"
    return None


def computes_branch(call: Call) -> bool:
    """Whether `attention` gives the output with that of the method's branch."""
    method = call.method
    if not isinstance(method, Method) or isinstance(method.rule.temperature, str):
        return False  # a learned temperature is in the queries, which the branch takes as they are
    return linear.adds_onto(method.branch, call)


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) in the query's dtype; scores, selection and weights are float32."""
    from crisp_attention.kernels.cpu.block_operators import blocks as in_blocks
    from crisp_attention.kernels.cpu.block_operators import spans_of
    from crisp_attention.kernels.cpu.chosen_operators import chosen
    from crisp_attention.kernels.cpu.linear.operators import sparse_linear
    from crisp_attention.kernels.cpu.operators import rows

    call = call.masked()
    assert isinstance(call.method, Method)
    code = code_of(call.method.rule)
    assert code is not None
    query, key, value = (states.float() for states in (call.query, call.key, call.value))
    valid, graph = call.valid, call.blocks
    if graph is not None and graph.blocks.size % LANES:
        # small blocks, which are best as a mask for each pair
        with torch.no_grad():
            valid, graph = visible_pairs(call.rows, call.method, graph), None
    seed = torch.zeros((), dtype=torch.int64, device=query.device)
    if call.dropout > 0:  # without it torch's generator is left alone
        seed = call.draw()
    if graph is None:
        bias = None if call.bias is None else call.bias.float()
        output, *_ = rows(
            query,
            key,
            value,
            valid,
            bias,
            seed,
            *code,
            call.causal,
            call.scale,
            call.dropout,
        )
        return output.to(call.query.dtype)
    if (choice := graph.choice) is not None:
        numbers = choice.sparsity, choice.sink_blocks, choice.local_blocks
        output, *_ = chosen(
            query,
            key,
            value,
            None,
            seed,
            *code,
            call.causal,
            0,
            call.scale,
            call.dropout,
            graph.blocks.size,
            *numbers,
        )
        return output.to(call.query.dtype)
    blocks, (counts, listed) = graph.blocks, graph.listed()
    states = tuple(map(blocks.in_order, (query, key, value)))
    branch = call.method.branch
    if computes_branch(call) and isinstance(branch, Linear):
        learned = linear.marginal_of(branch, call), *linear.projection(branch, call)
        kind = linear.MAPS[branch.feature_map]
        shown = listed, counts, blocks.lengths, seed
        output, *_ = sparse_linear(
            *states, *shown, *learned, *code, call.scale, call.dropout, blocks.size, kind
        )
    else:
        band = () if graph.band is None else graph.band.numbers(key.shape[2])
        shown = listed, counts, spans_of(blocks.lengths), seed
        output, *_ = in_blocks(
            *states, *shown, *code, call.causal, 0, call.scale, call.dropout, blocks.size, band
        )
    return blocks.back(output).to(call.query.dtype)
