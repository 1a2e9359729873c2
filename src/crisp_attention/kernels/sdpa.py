"""torch's own attention, for what drops nothing."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import PerHead


def lacks(call: Call) -> str | None:
    """What this kernel cannot do of the call, None if it can."""
    if 0 in call.query.shape or 0 in call.key.shape or 0 in call.value.shape:
        return "empty tensors"
    if isinstance(call.method, PerHead):
        return "methods by head"
    symbolic = torch.compiler.is_compiling()
    if not call.method.drops_nothing(None if symbolic else call.key.shape[2]) or call.method.has_branch:
        return "sparsity"
    if not call.scale > 0:  # it scales what is forbidden, -inf, as well
        return "scales that are not positive"
    if call.first_query:
        return "queries that begin after the first key"
    given = {
        "masks": call.valid,
        "spans of keys": call.span,
        "a bias": call.bias,
        "a softcap": call.softcap,
        "attention sinks": call.sinks,
        "a generator for dropout": call.generator if call.dropout else None,
    }
    return next((words for words, value in given.items() if value is not None), None)


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv)."""
    return scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        dropout_p=call.dropout,
        is_causal=call.causal,
        scale=call.scale,
        enable_gqa=call.query.shape[1] != call.key.shape[1],
    )
