"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from crisp_attention.kernels.blocks import lacks_blocks, visible_pairs
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import linear
from crisp_attention.kernels.cpu.plan import BY_ROWS, LANES, RANDOM, code_of
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.rules import Entmax

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
    code = code_of(call.method.rule)
    if code is None or (code[0] in BY_ROWS and call.blocks is not None):
        return f"the rule {called(call.method.rule)}" + " on blocks" * (code is not None)
    if code[0] == RANDOM and call.seed is None:
        return "a seed"
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
    from crisp_attention.kernels.cpu.linear.operators import sparse_linear
    from crisp_attention.kernels.cpu.operators import rows

    assert isinstance(call.method, Method)
    code = code_of(call.method.rule)
    assert code is not None
    query, key, value = (states.float() for states in (call.query, call.key, call.value))
    if not computes_branch(call):  # whose features are of the width as it is
        query, key, value = (_whole_vectors(states) for states in (query, key, value))
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
        own = None
        if code[0] == RANDOM:
            assert call.rows.seed is not None
            own = call.rows.seed[..., 0].expand(query.shape[:3]).to(torch.int32)
        if isinstance(call.method.rule, Entmax) and call.method.rule.alpha == "learned":
            own = call.method.rule.exponents(call.rows).float()
        output, *_ = rows(
            query,
            key,
            value,
            valid,
            bias,
            None,
            None,
            None,
            seed,
            own,
            *code,
            call.causal,
            call.scale,
            call.dropout,
            0,
        )
        return output[..., : call.value.shape[-1]].to(call.query.dtype)
    blocks, (counts, listed) = graph.blocks, graph.listed()
    states = tuple(map(blocks.in_order, (query, key, value)))
    shown = listed, counts, blocks.lengths, seed
    branch = call.method.branch
    if computes_branch(call) and isinstance(branch, Linear):
        learned = linear.marginal_of(branch, call), *linear.projection(branch, call)
        kind = linear.MAPS[branch.feature_map]
        output, *_ = sparse_linear(
            *states, *shown, *learned, *code, call.scale, call.dropout, blocks.size, kind
        )
    else:
        output, *_ = rows(
            *states, None, None, *shown, None, *code, call.causal, call.scale, call.dropout, blocks.size
        )
    return blocks.back(output)[..., : call.value.shape[-1]].to(call.query.dtype)


def _whole_vectors(states: Tensor) -> Tensor:
    """Zeros added to the width up to whole vectors: single numbers take longer than the copy."""
    missing = -states.shape[-1] % LANES
    return pad(states, (0, missing)) if missing else states
