"""Choosing blocks on GPUs, in Triton: a few launches in place of a hundred, which take a host longer than the GPU."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from crisp_attention.kernels.triton_choices.counts import counts_of
from crisp_attention.methods.blocks import BlockGraph, Blocks
from crisp_attention.methods.layouts import BlockTopK, Layout
from crisp_attention.methods.ranking import is_plain
from crisp_attention.methods.rows import Rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST = 4096  # blocks of a row that its program has in registers


def chooses(rows: Rows, layout: Layout) -> bool:
    """Whether `chosen` is for these: on NVIDIA's GPUs, and where no program is being recorded."""
    query = rows.query
    if query.device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return can_choose(rows, layout)


def can_choose(rows: Rows, layout: Layout) -> bool:
    """Whether these passes give what `layout.blocks` does, on whatever device."""
    states = rows.query, rows.key
    if type(layout) is not BlockTopK or layout.sparsity == 0 or rows.causal:
        return False
    if not is_plain(*states) or not all(each.dtype in DTYPES and 0 not in each.shape for each in states):
        return False
    return rows.query.shape[2] == rows.key.shape[2] <= MOST * layout.block_size


def chosen(rows: Rows, layout: BlockTopK) -> BlockGraph | None:
    """What `layout.blocks` gives, for rows that `can_choose`; products and ranks are float32."""
    import triton

    from crisp_attention.kernels.triton_choices import passes

    blocks = Blocks.of(rows, layout.block_size)
    if blocks is None:
        return layout.blocks(rows)
    query, key = (_means(blocks, states) for states in (rows.query, rows.key))
    groups = key.shape[1]
    products = (query.unflatten(1, (groups, -1)) @ key[:, :, None].transpose(-1, -2)).flatten(1, 2)
    ranked = torch.empty_like(products)
    seen = torch.empty_like(products, dtype=torch.bool)
    programs, common = _common(blocks, seen)
    with torch.cuda.device_of(products):
        passes.choose[(programs,)](
            products=products,
            counts=counts_of(layout.sparsity, 1, blocks.count, products.device),
            ranked=ranked,
            seen=seen.view(torch.uint8),
            sinks=layout.sink_blocks,
            near=layout.local_blocks,
            scale=rows.scale,
            BLOCKS=triton.next_power_of_2(blocks.count),
            **common,
        )
    return BlockGraph(blocks, seen, ranked)


def rest(graph: BlockGraph, negligible: float) -> Tensor:
    """What is neither seen nor among the share that is negligible, bool like `graph.ranked`: `Linear.marginal`."""
    import triton

    from crisp_attention.kernels.triton_choices import passes

    assert graph.seen is not None
    assert graph.ranked is not None
    blocks, seen = graph.blocks, graph.seen
    found = torch.empty(seen.shape, dtype=torch.bool, device=seen.device)
    programs, common = _common(blocks, seen)
    with torch.cuda.device_of(seen):
        passes.choose_rest[(programs,)](
            ranked=graph.ranked.contiguous(),
            seen=seen.view(torch.uint8),
            counts=counts_of(negligible, 0, blocks.count, seen.device),
            rest=found.view(torch.uint8),
            strides=seen.stride(),
            BLOCKS=triton.next_power_of_2(blocks.count),
            **common,
        )
    return found


def lists(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of each row of (B, H, m, n) are True, and which, ascending, first; int32, the rest unwritten."""
    from crisp_attention.kernels.triton_choices import passes

    (batch, heads, rows, columns), device = seen.shape, seen.device
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=device)
    blocks = torch.empty(seen.shape, dtype=torch.int32, device=device)
    with torch.cuda.device_of(seen):
        passes.list_seen[(batch * heads * rows,)](
            seen=seen.view(torch.uint8),
            blocks=blocks,
            counts=counts,
            strides=seen.stride(),
            rows=rows,
            heads=heads,
            columns=columns,
            CHUNK=128,
            num_warps=1,
        )
    return counts, blocks


def touched(picked: Tensor, size: int) -> Tensor:
    """Which blocks (B, H, m, n) any query of a tile of `size` sees, of what each one does, (B, H, L, n)."""
    if missing := -picked.shape[2] % size:
        picked = pad(picked, (0, 0, 0, missing))
    return picked.unflatten(2, (-1, size)).amax(dim=3)


def _means(blocks: Blocks, states: Tensor) -> Tensor:
    import triton

    from crisp_attention.kernels.triton_choices import passes

    if blocks.order is not None:
        return blocks.means(states).float()
    batch, heads, tokens, width = states.shape
    means = torch.empty(batch, heads, blocks.count, width, dtype=torch.float32, device=states.device)
    with torch.cuda.device_of(states):
        passes.mean_tokens[(batch * heads * blocks.count,)](
            states=states,
            means=means,
            strides=states.stride(),
            blocks=blocks.count,
            heads=heads,
            tokens=tokens,
            width=width,
            SIZE=blocks.size,
            STEP=min(32, triton.next_power_of_2(blocks.size)),
            WIDTH=triton.next_power_of_2(width),
        )
    return means


def _common(blocks: Blocks, seen: Tensor) -> tuple[int, dict[str, Any]]:
    batch, heads = seen.shape[:2]
    return batch * heads * blocks.count, {
        "lengths": blocks.lengths,
        "blocks": blocks.count,
        "heads": heads,
        "tokens": blocks.length,
        "SIZE": blocks.size,
        "LENGTHS": blocks.lengths is not None,
    }
