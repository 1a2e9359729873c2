"""Blocks that every query chooses for itself, by its products with the mean keys of those before its own.

Two launches and one product of matrices, whatever the length; nothing waits for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.triton_choices.counts import counts_of
from crisp_attention.kernels.triton_choices.passes import largest
from crisp_attention.kernels.triton_rows.tiles import load_rows
from crisp_attention.methods.blocks import Choice

# numbers of a tile: of keys, of products
KEYS, PRODUCTS = 4096, 1024


@triton.jit
def bounds(span, b, keys, mask, SPANS: tl.constexpr):
    """The first valid key of an example, and the one after the last."""
    begin, end = b * 0, b * 0 + keys
    if SPANS:
        begin = tl.maximum(tl.load(span + 2 * b, mask=mask, other=0).to(tl.int32), 0)
        end = tl.minimum(tl.load(span + 2 * b + 1, mask=mask, other=0).to(tl.int32), keys)
    return begin, end


@triton.jit(do_not_specialize=["groups", "keys", "width"])
def mean_keys(
    key, span, means, broken, k_strides, groups, keys, blocks, width,
    SPANS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The mean (D,) of a block's keys, and which of them is the first with a number that is not finite, else SIZE."""
    program = tl.program_id(0)
    at, block = program // blocks, program % blocks
    b, g = (at // groups).to(tl.int64), (at % groups).to(tl.int64)
    begin, end = bounds(span, b.to(tl.int32), keys, True, SPANS)
    first = begin + block * SIZE
    stop = tl.minimum(first + SIZE, end)
    key += b * k_strides[0] + g * k_strides[1]
    sums, found = tl.zeros([WIDTH], tl.float32), tl.full([ROWS], SIZE, tl.int32)
    for start in range(0, SIZE, ROWS):
        k = load_rows(key, k_strides[2], first + start, stop, width, ROWS, WIDTH).to(tl.float32)
        sums += tl.sum(k, 0)
        finite = tl.min((tl.abs(k) < float("inf")).to(tl.int32), 1)
        found = tl.minimum(found, tl.where(finite == 0, start + tl.arange(0, ROWS), SIZE))
    count = tl.maximum(stop - first, 1).to(tl.float32)
    column = tl.arange(0, WIDTH)
    tl.store(means + program.to(tl.int64) * width + column, sums / count, mask=column < width)
    tl.store(broken + program, tl.min(found, 0))


@triton.jit(do_not_specialize=["rows", "queries", "heads", "keys", "first_query", "sinks", "near"])
def pick(
    products, broken, shares, span, picks,
    scale, rows, queries, heads, shared, keys, blocks, first_query, sinks, near,
    SPANS: tl.constexpr, CAUSAL: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Which blocks each of some queries sees, (ROWS, blocks)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    at = row // queries
    begin, end = bounds(span, at // heads, keys, real, SPANS)
    position = end - 1  # that of one query that sees every key
    if CAUSAL:
        position = row % queries + first_query
        # one query is decoding: where its cache ends before it, its own key is the last one there
        position = tl.where(queries == 1, tl.minimum(position, end - 1), position)
    real = real & (position >= begin) & (position < end)
    place = tl.where(real, position - begin, 0)
    own = place // SIZE
    block = tl.arange(0, BLOCKS)[None, :]
    there = real[:, None] & (block <= own[:, None])
    forced = there & ((block < sinks) | (block > own[:, None] - near))
    # the own block's mean may hold later keys: it is kept without
    earlier = there & (block < own[:, None])
    column = row[:, None].to(tl.int64) * blocks + block
    values = tl.load(products + column, mask=earlier, other=0.0) * scale
    finite = tl.min((tl.abs(values) < float("inf")).to(tl.int32), 1)
    first = tl.load(broken + (at // shared) * blocks + own, mask=real, other=SIZE)
    spoilt = (finite == 0) | (first <= place % SIZE)
    values = tl.where(spoilt[:, None], 0.0, values)
    count = tl.load(shares + own + 1, mask=real, other=0) - tl.sum(forced.to(tl.int32), 1)
    best = largest(values, there & (forced == 0), count[:, None])
    kept = forced | best | (there & spoilt[:, None])
    inside = (row[:, None] < rows) & (block < blocks)
    tl.store(picks + column, kept.to(tl.uint8), mask=inside)


def picked(
    query: Tensor,
    key: Tensor,
    choice: Choice,
    size: int,
    scale: float,
    causal: bool,
    first_query: int,
    span: Tensor | None,
) -> Tensor:
    """Which blocks each query sees, uint8 (B, H, L, n), of the n = ceil(S / size) that its row may have.

    For queries (B, H, L, D) and keys (B, G, S, D) of a call with a `choice`: causal, or one query. Of `span` (B, 2),
    the valid keys of each example, blocks are counted from the first. Queries before or after them see nothing, but for
    one that comes alone, whose own key is then the last.
    """
    (batch, heads, queries, width), (groups, keys) = query.shape, key.shape[1:3]
    blocks, shared = -(-keys // size), heads // groups
    key, span = by_rows(key), None if span is None else span.contiguous()
    means = torch.empty(batch, groups, blocks, width, dtype=torch.float32, device=key.device)
    broken = torch.empty(batch, groups, blocks, dtype=torch.int32, device=key.device)
    picks = torch.empty(batch, heads, queries, blocks, dtype=torch.uint8, device=key.device)
    with torch.cuda.device_of(query):
        mean_keys[(broken.numel(),)](
            key=key,
            span=span,
            means=means,
            broken=broken,
            k_strides=key.stride(),
            groups=groups,
            keys=keys,
            blocks=blocks,
            width=width,
            SPANS=span is not None,
            SIZE=size,
            **key_tile(size, width),
        )
        # queries of a group one after another, so that no mean is copied for each of its heads
        together = query.to(torch.float32).reshape(batch, groups, shared * queries, width)
        products = together @ means.transpose(-1, -2)
        tile = product_tile(blocks)
        rows = batch * heads * queries
        pick[(triton.cdiv(rows, tile["ROWS"]),)](
            products=products,
            broken=broken,
            shares=counts_of(choice.sparsity, 1, blocks, query.device),
            span=span,
            picks=picks,
            scale=scale,
            rows=rows,
            queries=queries,
            heads=heads,
            shared=shared,
            keys=keys,
            blocks=blocks,
            first_query=first_query,
            sinks=choice.sink_blocks,
            near=max(1, choice.local_blocks),
            SPANS=span is not None,
            CAUSAL=causal,
            SIZE=size,
            **tile,
        )
    return picks


def key_tile(size: int, width: int) -> dict[str, int]:
    """The tile of `mean_keys` for blocks of a size and heads of a width, and its warps."""
    columns = triton.next_power_of_2(width)
    rows = min(triton.next_power_of_2(size), max(1, KEYS // columns))
    return {"ROWS": rows, "WIDTH": columns, "num_warps": 4}


def product_tile(blocks: int) -> dict[str, int]:
    """The tile of `pick` for so many blocks, and its warps."""
    columns = triton.next_power_of_2(blocks)
    rows = max(1, PRODUCTS // columns)
    return {"ROWS": rows, "BLOCKS": columns, "num_warps": max(4, rows * columns // 512)}
