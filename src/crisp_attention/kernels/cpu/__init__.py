"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import choose, front, listed, only_keys
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.plan import LANES, code_of
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.layouts import BlockTopK, Full, Layout
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
    if type(call.method.layout) is not Full and (missing := _layout_lacks(call, call.method.layout)):
        return missing
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
    layout = call.method.layout
    query, key, value = (states.float() for states in (call.query, call.key, call.value))
    valid, order = call.valid, None
    blocks = block_counts = lengths = None
    if type(layout) is BlockTopK:
        if valid is not None:
            real = valid[:, 0, 0].expand(query.shape[0], key.shape[2])
            valid, order, lengths = None, front(real), real.sum(dim=-1, dtype=torch.int32)
            query, key, value = (_in_order(states, order) for states in (query, key, value))
        block_counts, blocks = listed(choose(query, key, layout, call.scale, lengths))
    seed = torch.zeros((), dtype=torch.int64, device=query.device)
    if call.dropout > 0:  # without it torch's generator is left alone
        seed = call.draw()
    output, *_ = rows(
        query,
        key,
        value,
        valid,
        None if call.bias is None else call.bias.float(),
        blocks,
        block_counts,
        lengths,
        seed,
        *code,
        call.causal,
        call.scale,
        call.dropout,
        call.method.block_size or 0,
    )
    if order is not None:
        output = _in_order(output, order.argsort(dim=-1))
    return output.to(call.query.dtype)


def _layout_lacks(call: Call, layout: Layout) -> str | None:
    if type(layout) is not BlockTopK:
        return f"the layout {called(layout)}"
    if layout.block_size % LANES:
        return f"blocks of {layout.block_size} keys (a multiple of {LANES} is needed)"
    same = call.valid is None or only_keys(call.valid)
    if call.causal or not same or call.query.shape[2] != call.key.shape[2]:
        return "block choices for single queries (causal and other masks, decoding, cross-attention)"
    return "blocks with a bias" if call.bias is not None else None


def _in_order(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(2, order[:, None, :, None].expand(states.shape))
