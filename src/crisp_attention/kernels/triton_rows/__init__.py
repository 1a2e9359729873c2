"""Exact row rules on GPUs, in Triton: the threshold of every row first, then a flash pass that uses it.

Nothing of size L × S is held, forward or backward: the gradients compute the scores again and need
four numbers per row. Everything runs on the host as well, in Triton's interpreter.
"""

import math
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from crisp_attention.kernels.call import Call
from crisp_attention.kernels.lightest import lighter
from crisp_attention.kernels.triton_choices.counts import counts_of
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.layouts import Full
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.ranking import ROUNDING, is_plain
from crisp_attention.methods.rules import Dense, Threshold, TopK, TopP

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 256  # wider tiles do not fit next to each other
FINEST = 2**24


def lacks(call: Call) -> str | None:
    """What the kernel lacks for this call, None if it can do it."""
    query = call.query
    if find_spec("triton") is None:
        return "the package triton"
    devices = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
    if query.device.type not in devices:
        return f"tensors on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"the dtype {str(query.dtype).removeprefix('torch.')}"
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return "the dtype bfloat16 in Triton's interpreter, whose products take its bits for whole numbers"
    if isinstance(call.method, PerHead):
        return "a method for each head"
    if type(call.method.layout) is not Full:
        return f"the layout {called(call.method.layout)}"
    if type(call.method.rule) not in (Dense, TopK, TopP, Threshold):
        return f"the rule {called(call.method.rule)}"
    if max(query.shape[-1], call.value.shape[-1]) > WIDEST:
        return f"heads wider than {WIDEST}"
    if 0 in query.shape:
        return "empty tensors"
    return call.modifier


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) of a call that lacks nothing; differentiable in query, key and value."""
    from crisp_attention.kernels.triton_rows import operators

    call = call.masked()
    assert isinstance(call.method, Method)
    query, keys, rule = call.query, call.key.shape[2], call.method.rule
    name, number, count_of, valid = "threshold", 0.0, None, call.valid
    if isinstance(rule, TopK):
        name, count_of = "topk", _counts(rule, keys, query)
    elif isinstance(rule, TopP) and rule.mass < 1:
        # rounded down to what float32 holds: above the mass, keys that reach it exactly would be one too few
        name, number = "topp", max(math.floor((rule.mass - ROUNDING) * FINEST), 1) / FINEST
    else:
        epsilon = rule.epsilon if isinstance(rule, Threshold) else 0
        number = math.log(epsilon) if epsilon else -math.inf
    if valid is not None:
        valid = valid.expand(*query.shape[:3], keys)
    run = lighter(operators.forward_now, operators.node, operators.forward, (query, call.key, call.value))
    output, *_ = run(
        query,
        call.key,
        call.value,
        valid,
        count_of,
        call.draw() if call.dropout else None,
        name,
        number,
        call.scale,
        call.causal,
        call.dropout,
    )
    return output


def _counts(rule: TopK, keys: int, query: Tensor) -> Tensor:
    """k for each number of keys up to `keys`, int32 (keys + 1,)."""
    if rule.sparsity is not None and is_plain(query) and torch._C._len_torch_dispatch_stack() == 0:
        return counts_of(rule.sparsity, rule.min_keep, keys, query.device)
    return rule.count_of(torch.arange(keys + 1, device=query.device)).int()
