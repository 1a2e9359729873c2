"""Block layouts on GPUs, through torch's FlexAttention; the BlockMask is made from the chosen blocks."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import choose, front, listed, only_keys
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.derivatives import OnlyOnce
from crisp_attention.kernels.memory import apart
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.rules import Dense

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NARROWEST = 16  # of blocks and heads on GPUs
# of FlexAttention's tiles for gradients, in torch 2.13's _inductor/template_heuristics/triton.py: what the usual
# ones all divide, and the smallest among those that are tried out
USUAL_TILE, NARROWEST_SEARCHED = 128, 32


def lacks(call: Call) -> str | None:
    """What the kernel lacks for this call, None if it can do it."""
    query, key, method = call.query, call.key, call.method
    if isinstance(method, PerHead):
        return "a method for each head"
    if type(method.layout) is not BlockTopK:
        return f"the layout {called(method.layout)}"
    if type(method.rule) is not Dense:
        return f"the rule {called(method.rule)}"
    if call.causal:
        return "causal masks, under which each query chooses for itself"
    if query.shape[2] != key.shape[2]:
        return "as many queries as keys"
    if 0 in query.shape:
        return "empty tensors"
    if call.valid is not None and not only_keys(call.valid):
        return "masks that differ between queries or heads"
    if call.dropout:
        return "dropout"
    if not math.isfinite(call.scale):
        return f"the scale {call.scale}"
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
    query, key, value = map(_input, (call.query, call.key, call.value))
    call = replace(call, query=query, key=key, value=value)
    if call.valid is None:
        return _attend(call, None)
    present = call.valid[:, 0, 0].expand(call.key.shape[0], call.key.shape[2])
    order = front(present)
    query, key, value = (_moved(states, order) for states in (query, key, value))
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
    from torch.nn.attention.flex_attention import AuxRequest

    assert isinstance(call.method, Method)
    assert isinstance(call.method.layout, BlockTopK)
    query, key, layout = call.query, call.key, call.method.layout
    kept = choose(query, key, layout, call.scale, lengths)
    mask = block_mask(kept, layout.block_size, key.shape[2], lengths)
    run, options = _flex_attention(query.device.type, layout.block_size)
    output, more = run(
        query,
        key,
        call.value,
        block_mask=mask,
        scale=call.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
        return_aux=AuxRequest(lse=True),
    )
    return output * _nan_without_weights(more.lse.detach(), lengths).to(output.dtype)


def _nan_without_weights(sums: Tensor, lengths: Tensor | None) -> Tensor:
    # where all that a query sees scores -inf, FlexAttention gives the zeros of a query that sees nothing
    real: Tensor | bool = True
    if lengths is not None:
        real = torch.arange(sums.shape[2], device=sums.device) < lengths[:, None, None]
    return torch.where(sums.isneginf() & real, torch.nan, 1.0).unsqueeze(-1)


@cache
def _flex_attention(device: str, block_size: int) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention, {}
    tile = min(block_size, 64)
    # Below 128 queries it would otherwise take its kernel for decoding, which takes the tiles asked for as they
    # are and the length for a multiple of them: read in torch 2.13, _inductor/kernel/flex/flex_decoding.py.
    own = {"FORCE_USE_FLEX_ATTENTION": True, "fwd_BLOCK_M": tile, "fwd_BLOCK_N": tile}
    # Its usual tiles for gradients are up to 128 wide, and those that do not divide a block are
    # never taken, whatever the options say: smaller ones are only in the list that is tried out.
    search: dict[str, Any] = {} if block_size % USUAL_TILE == 0 else {"max_autotune": True}
    return torch.compile(flex_attention, options=search or None), own


def _input(states: Tensor) -> Tensor:
    states = apart(states)
    return states if torch.compiler.is_compiling() else OnlyOnce.apply(states, "flex")


def _moved(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(2, order[:, None, :, None].expand_as(states))


def _lacks_on_host(call: Call) -> str | None:
    return "gradients on CPUs" if _learns(call) else None


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
    if not _learns(call):
        return None
    if torch.compiler.is_compiling() and layout.block_size % USUAL_TILE:
        # there the search for tiles that `_flex_attention` asks for is not made, and the usual ones do not fit
        return f"gradients inside a compiled model for blocks of {layout.block_size} keys"
    if layout.block_size < NARROWEST_SEARCHED and query.dtype != torch.float32:
        return f"gradients in half precision for blocks of {layout.block_size} keys"
    return None


def _learns(call: Call) -> bool:
    states = (call.query, call.key, call.value)
    return torch.is_grad_enabled() and any(each.requires_grad for each in states)
