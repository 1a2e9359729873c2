"""Exact row rules on CPUs: nothing L x L is held, and what is not kept costs little more than its score."""

import torch
from torch import Tensor

from crisp_attention.heads import PerHead
from crisp_attention.kernels.call import Call
from crisp_attention.layouts import Full

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lacks(call: Call) -> str | None:
    """What this kernel cannot do of the call, None if it can."""
    from crisp_attention.kernels.cpu.plan import code_of

    if call.query.device.type != "cpu":
        return f"the device {call.query.device.type}"
    if call.query.dtype not in DTYPES:
        return f"{call.query.dtype}"
    if isinstance(call.method, PerHead):
        return "methods by head"
    if not isinstance(call.method.layout, Full):
        return f"the layout {call.method.layout.name}"
    if code_of(call.method.rule) is None:
        return f"the rule {call.method.rule.name}"
    if call.softcap is not None or call.sinks is not None:
        return "softcap and sinks"
    if call.bias is not None and call.bias.requires_grad:
        return "a bias that learns"
    return None


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) in the query's dtype; scores, selection and weights are float32."""
    from crisp_attention.kernels.cpu.operators import rows
    from crisp_attention.kernels.cpu.plan import code_of, counts_of

    assert not isinstance(call.method, PerHead)
    code = code_of(call.method.rule)
    assert code is not None
    batch, heads, queries, _ = call.query.shape
    full = (batch, heads, queries, call.key.shape[2])
    seed = torch.zeros((), dtype=torch.int64)
    if call.dropout > 0:
        seed = torch.randint(2**31, ())
    output, *_ = rows(
        *(states.float() for states in (call.query, call.key, call.value)),
        None if call.valid is None else _with_rows(call.valid, full),
        None if call.bias is None else _with_rows(call.bias.float(), full),
        counts_of(call.method.rule, call.key.shape[2]),
        seed,
        *code,
        call.causal,
        call.scale,
        call.dropout,
    )
    return output.to(call.query.dtype)


def _with_rows(mask: Tensor, full: tuple[int, ...]) -> Tensor:
    mask = mask.expand(*mask.shape[:-1], full[-1])
    return (mask if mask.stride(-1) == 1 else mask.contiguous()).expand(full)
