"""Block layouts on GPUs, through torch's FlexAttention; the BlockMask is made from the chosen blocks."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import lacks_blocks, lacks_parts
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.derivatives import OnlyOnce
from crisp_attention.kernels.lightest import learns
from crisp_attention.kernels.memory import apart
from crisp_attention.methods.blocks import BlockGraph, listed
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.part import called
from crisp_attention.methods.rules import Dense

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NARROWEST = 16  # of blocks and heads on GPUs
# of FlexAttention's tiles for gradients, in torch 2.13's _inductor/template_heuristics/triton.py: what the usual
# ones all divide, and the smallest among those that are tried out
USUAL_TILE, NARROWEST_SEARCHED = 128, 32


def lacks(call: Call) -> str | None:
    """What the kernel lacks for this call, None if it can do it."""
    query, method = call.query, call.method
    if isinstance(method, PerHead):
        return "a method for each head"
    if missing := lacks_blocks(call, method.layout):
        return missing
    if call.blocks is None:
        return f"the layout {called(method.layout)}"
    if missing := lacks_parts(call.blocks):
        return missing
    if type(method.rule) is not Dense:
        return f"the rule {called(method.rule)}"
    if 0 in query.shape:
        return "empty tensors"
    if call.dropout:
        return "dropout"
    if not math.isfinite(call.scale):
        return f"the scale {call.scale}"
    if call.modifier is not None:
        return call.modifier
    return (
        _lacks_on_host(call)
        if query.device.type == "cpu"
        else _lacks_on_device(call, call.blocks.blocks.size)
    )


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) of a call that lacks nothing; differentiable in query, key and value.

    Blocks count an example's real tokens, so these are moved to the front and back again. The rows
    of padded queries, which mean nothing, are zeros.
    """
    query, key, value = map(_input, (call.query, call.key, call.value))
    assert call.blocks is not None
    blocks = call.blocks.blocks
    query, key, value = map(blocks.in_order, (query, key, value))
    output = _attend(replace(call, query=query, key=key, value=value), call.blocks)
    if blocks.lengths is not None:
        place = torch.arange(blocks.length, device=output.device)[:, None]
        output = output.masked_fill(place >= blocks.lengths[:, None, None, None], 0)
    return blocks.back(output)


def block_mask(graph: BlockGraph) -> Any:
    """The BlockMask of a graph: blocks with nothing but real keys are full."""
    from torch.nn.attention.flex_attention import BlockMask

    assert graph.seen is not None
    kept, size, length, lengths = graph.seen, graph.blocks.size, graph.blocks.length, graph.blocks.lengths
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


def _attend(call: Call, graph: BlockGraph) -> Tensor:
    from torch.nn.attention.flex_attention import AuxRequest

    query, key = call.query, call.key
    run, options = _flex_attention(query.device.type, graph.blocks.size)
    output, more = run(
        query,
        key,
        call.value,
        block_mask=block_mask(graph),
        scale=call.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
        return_aux=AuxRequest(lse=True),
    )
    return output * _nan_without_weights(more.lse.detach(), graph.blocks.lengths).to(output.dtype)


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


def _lacks_on_host(call: Call) -> str | None:
    return "gradients on CPUs" if learns((call.query, call.key, call.value)) else None


def _lacks_on_device(call: Call, size: int) -> str | None:
    query = call.query
    if query.device.type != "cuda":
        return f"tensors on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"the dtype {str(query.dtype).removeprefix('torch.')}"
    if size < NARROWEST or size & (size - 1):
        return f"blocks of {size} keys"
    if min(query.shape[-1], call.value.shape[-1]) < NARROWEST:
        return f"heads narrower than {NARROWEST}"
    if not learns((call.query, call.key, call.value)):
        return None
    if torch.compiler.is_compiling() and size % USUAL_TILE:
        # there the search for tiles that `_flex_attention` asks for is not made, and the usual ones do not fit
        return f"gradients inside a compiled model for blocks of {size} keys"
    if size < NARROWEST_SEARCHED and query.dtype != torch.float32:
        return f"gradients in half precision for blocks of {size} keys"
    return None
