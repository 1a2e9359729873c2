"""Which blocks see each other: mean tokens, ranks, and lists, each in one pass, because on GPUs launches are what
costs."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.candidates import image
from crisp_attention.kernels.triton_rows.tiles import place


@triton.jit
def largest(values, there, count):
    """Which of the entries `there` of each row, the last dimension, are its `count` largest; ties go to the first ones.

    `values` are float32 and not NaN; `count` is one number, or a column of them, and may be more than there are. The
    count-th largest is searched for among integers in the floats' order, of which 2**32 leave one after 32 halvings.
    """
    lowest: tl.constexpr = -(2**31)  # below every float
    images = tl.where(there, image(values).to(tl.int32), lowest)
    low = tl.min(images, -1, keep_dims=True)
    high = tl.max(images, -1, keep_dims=True) + 1
    for _ in range(32):
        middle = (low & high) + ((low ^ high) >> 1)  # whose sum would overflow
        enough = tl.sum((images >= middle).to(tl.int32), -1, keep_dims=True) >= count
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    above, tied = images > low, there & (images == low)
    room = count - tl.sum(above.to(tl.int32), -1, keep_dims=True)
    return above | (tied & (tl.cumsum(tied.to(tl.int32), -1) <= room))


@triton.jit
def mean_tokens(
    states, means, strides, blocks, heads, tokens, width,
    SIZE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean of each block of tokens, (B, H, n, D) float32; of the last one's, if it has fewer."""
    block, b, h = place(blocks, heads)
    states += b * strides[0] + h * strides[1]
    column = tl.arange(0, WIDTH)
    sums = tl.zeros([WIDTH], tl.float32)
    first = block * SIZE
    for step in range(0, SIZE, STEP):
        inside = step + tl.arange(0, STEP)
        row = first + inside
        mask = ((inside < SIZE) & (row < tokens))[:, None] & (column[None, :] < width)
        at = states + row[:, None].to(tl.int64) * strides[2] + column[None, :] * strides[3]
        sums += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float32), 0)
    count = tl.minimum(tokens - first, SIZE).to(tl.float32)
    out = means + ((b * heads + h) * blocks + block) * width
    tl.store(out + column, sums / count, mask=column < width)


@triton.jit
def choose(
    products, lengths, counts, ranked, seen, blocks, heads, sinks, near, tokens, scale,
    SIZE: tl.constexpr, LENGTHS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """What a block of queries sees, of its products with the mean keys, and what it ranks them by.

    `counts` (n + 1,) says how many it keeps of so many blocks.
    """
    own, b, h = place(blocks, heads)
    at = ((b * heads + h) * blocks + own) * blocks
    column = tl.arange(0, BLOCKS)
    product = tl.load(products + at + column, mask=column < blocks, other=0.0) * scale
    length = tokens
    if LENGTHS:
        length = tl.load(lengths + b)
    present = (length + SIZE - 1) // SIZE
    there = column < present
    finite = tl.abs(product) < float(
        "inf"
    )  # product - product need not be 0: compilers fuse it with the scale
    broken = tl.sum((there & (finite == 0)).to(tl.int32), 0) > 0
    forced = there & ((column < sinks) | (tl.abs(column - own) < near))
    rank = tl.where(forced, float("inf"), product)
    count = tl.maximum(tl.load(counts + present), tl.sum(forced.to(tl.int32), 0))
    kept = largest(tl.where(broken, 0.0, rank), there, count)
    kept = ((kept & (broken == 0)) | (there & broken)) & (own < present)
    rank = tl.where(broken & (forced == 0), float("nan"), rank)
    tl.store(ranked + at + column, rank, mask=column < blocks)
    tl.store(seen + at + column, kept.to(tl.uint8), mask=column < blocks)


@triton.jit
def choose_rest(
    ranked, seen, lengths, counts, rest, strides, blocks, heads, tokens,
    SIZE: tl.constexpr, LENGTHS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The best of what a block of queries does not see: with what it sees, `counts` (n + 1,) of its blocks."""
    own, b, h = place(blocks, heads)
    at = ((b * heads + h) * blocks + own) * blocks
    column = tl.arange(0, BLOCKS)
    rank = tl.load(ranked + at + column, mask=column < blocks, other=0.0)
    here = seen + b * strides[0] + h * strides[1] + own * strides[2] + column * strides[3]
    sees = tl.load(here, mask=column < blocks, other=0) != 0
    length = tokens
    if LENGTHS:
        length = tl.load(lengths + b)
    present = (length + SIZE - 1) // SIZE
    other = (column < present) & (sees == 0)
    count = tl.maximum(tl.load(counts + present) - tl.sum(sees.to(tl.int32), 0), 0)
    kept = largest(tl.where(rank != rank, 0.0, rank), other, count)
    tl.store(rest + at + column, kept.to(tl.uint8), mask=column < blocks)


@triton.jit
def list_seen(seen, blocks, counts, strides, rows, heads, columns, CHUNK: tl.constexpr):
    """Which columns of a row are not 0, ascending, (B, H, rows, columns), the rest unwritten; and how many."""
    row, b, h = place(rows, heads)
    seen += b * strides[0] + h * strides[1] + row * strides[2]
    at = (b * heads + h) * rows + row
    blocks += at * columns
    count = 0
    for first in range(0, columns, CHUNK):
        column = first + tl.arange(0, CHUNK)
        on = (tl.load(seen + column.to(tl.int64) * strides[3], mask=column < columns, other=0) != 0).to(
            tl.int32
        )
        tl.store(blocks + (count + tl.cumsum(on, 0) - 1), column, mask=on != 0)
        count += tl.sum(on, 0)
    tl.store(counts + at, count)
