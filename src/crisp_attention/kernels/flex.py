"""Block layouts on GPUs, through torch's FlexAttention; the BlockMask is made from the chosen blocks."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crisp_attention.heads import PerHead
from crisp_attention.kernels.blocks import choose, front, listed, only_keys
from crisp_attention.kernels.call import Call
from crisp_attention.layouts import BlockTopK
from crisp_attention.methods import Method
from crisp_attention.rules import Dense

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NARROWEST = 16  # of blocks and heads on GPUs


def lacks(call: Call) -> str | None:
    """What the kernel lacks for this call, None if it can do it."""
    query, key, method = call.query, call.key, call.method
    if isinstance(method, PerHead):
        return "a method for each head"
    if not isinstance(method.layout, BlockTopK):
        return f"the layout {method.layout.name}"
    if not isinstance(method.rule, Dense):
        return f"the rule {method.rule.name}"
    if call.causal:
        return "causal masks, under which each query chooses for itself"
    if query.shape[2] != key.shape[2]:
        return "as many queries as keys"
    if 0 in query.shape:
        return "empty tensors"
    if call.valid is not None and not only_keys(call.valid):
        return "masks that differ between queries or heads"
    if not call.scale > 0:
        return f"the scale {call.scale}"
    if call.dropout:
        return "dropout"
    given = {
        "a bias": call.bias,
        "a softcap": call.softcap,
        "attention sinks": call.sinks,
        "block means": call.block_means,
    }
    if missing := next((words for words, value in given.items() if value is not None), None):
        return missing
    return _lacks_on_host(call) if query.device.type == "cpu" else _lacks_on_device(call, method.layout)


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) of a call that lacks nothing; differentiable in query, key and value.

    Blocks count an example's real tokens, so these are moved to the front and back again. The rows
    of padded queries, which mean nothing, are zeros.
    """
    if call.valid is None:
        return _attend(call, None)
    present = call.valid[:, 0, 0].expand(call.key.shape[0], call.key.shape[2])
    order = front(present)
    query, key, value = (_moved(states, order) for states in (call.query, call.key, call.value))
    output = _attend(replace(call, query=query, key=key, value=value), present.sum(dim=-1))
    return _moved(output, order.argsort(dim=-1)).masked_fill(~present[:, None, :, None], 0)


def block_mask(kept: Tensor, size: int, length: int, lengths: Tensor | None) -> Any:
    """The BlockMask of the blocks `kept` (B, H, n, n): those with nothing but real keys are full."""
    from torch.nn.attention.flex_attention import BlockMask

    ends = torch.arange(1, kept.shape[-1] + 1, device=kept.device) * size
    last = torch.full((kept.shape[0],), length, device=kept.device) if lengths is None else lengths
    whole = ends <= last[:, None, None, None]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return kept[b, h, i // size, j // size] & (j < last[b])

    return BlockMask.from_kv_blocks(
        *listed(kept & ~whole),
        *listed(kept & whole),
        BLOCK_SIZE=size,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _attend(call: Call, lengths: Tensor | None) -> Tensor:
    assert isinstance(call.method, Method)
    assert isinstance(call.method.layout, BlockTopK)
    query, key, layout = call.query, call.key, call.method.layout
    mask = block_mask(choose(query, key, layout, lengths), layout.block_size, key.shape[2], lengths)
    run, options = _flex_attention(query.device.type, layout.block_size)
    output: Tensor = run(
        query,
        key,
        call.value,
        block_mask=mask,
        scale=call.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
    )
    return output


@cache
def _flex_attention(device: str, block_size: int) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention, {}
    tile = min(block_size, 64)
    # Its usual tiles for gradients are up to 128 wide, and those that do not divide a block are
    # never taken, whatever the options say: smaller ones are only in the list that is tried out.
    search: dict[str, Any] = {} if block_size % 128 == 0 else {"max_autotune": True}
    return torch.compile(flex_attention, options=search or None), {"fwd_BLOCK_M": tile, "fwd_BLOCK_N": tile}


def _moved(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(2, order[:, None, :, None].expand_as(states))


def _lacks_on_host(call: Call) -> str | None:
    states = (call.query, call.key, call.value)
    if torch.is_grad_enabled() and any(each.requires_grad for each in states):
        return "gradients on CPUs"
    return None


def _lacks_on_device(call: Call, layout: BlockTopK) -> str | None:
    query = call.query
    if query.device.type != "cuda":
        return f"tensors on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"the dtype {str(query.dtype).removeprefix('torch.')}"
    if layout.block_size < NARROWEST or layout.block_size & (layout.block_size - 1):
        return f"blocks of {layout.block_size} keys"
    if min(query.shape[-1], call.value.shape[-1]) < NARROWEST:
        return f"heads narrower than {NARROWEST}"
    return None
