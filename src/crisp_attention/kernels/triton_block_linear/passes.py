"""Rows of inputs times the blocks of a weight."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.tiles import PRECISION, load_rows, store_rows


@triton.jit
def load_groups(
    weights, places, start,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
    HELD: tl.constexpr, OF: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """DEPTH inputs of a block from `start` on, put together from the HELD weights of each group of OF."""
    fit: tl.constexpr = 32 // BITS
    line, column = start + tl.arange(0, DEPTH)[:, None], tl.arange(0, WIDTH)[None, :]
    there = (line < SIZE) & (column < SIZE)
    found = tl.zeros([DEPTH, WIDTH], weights.dtype.element_ty)
    for number in tl.static_range(HELD):
        own = line // OF * HELD + number
        word = tl.load(places + own // fit * SIZE + column, mask=there, other=0)
        place = word >> own % fit * BITS & (1 << BITS) - 1
        weight = tl.load(weights + own * SIZE + column, mask=there, other=0.0)
        found = tl.where(there & (place == line % OF), weight, found)
    return found


@triton.jit
def multiply(
    inputs, packed, index, places, bias, out,
    stride, rows, blocks, kept,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    LINES: tl.constexpr, HELD: tl.constexpr, OF: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A tile of rows times one row of blocks; programs that run together have the same rows, and share them in caches.

    A block is padded with zeros to WIDTH, and read DEPTH of its inputs at a time.
    """
    parts: tl.constexpr = WIDTH // DEPTH
    program = tl.program_id(0)
    block, first = program % blocks, program // blocks * ROWS
    packed += block.to(tl.int64) * kept * LINES * SIZE
    if places is not None:
        fit: tl.constexpr = 32 // BITS
        words: tl.constexpr = (LINES + fit - 1) // fit
        places += block.to(tl.int64) * kept * words * SIZE
    index += block * kept
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    chosen = tl.load(index)
    for number in range(kept * parts):
        start = chosen * SIZE + number % parts * DEPTH
        left = load_rows(inputs + start, stride, first, rows, SIZE, ROWS, DEPTH)
        if places is None:
            right = load_rows(packed + number * (SIZE // parts) * SIZE, SIZE, 0, SIZE, SIZE, DEPTH, WIDTH)
        else:
            whole, part = number // parts, number % parts
            right = load_groups(
                packed + whole * LINES * SIZE, places + whole * words * SIZE, part * DEPTH, SIZE, WIDTH, DEPTH,
                HELD, OF, BITS,
            )  # fmt: skip
        # a round ahead, so that the loads of the next rounds need not wait for it
        chosen = tl.load(index + tl.minimum((number + 1) // parts, kept - 1))
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    if bias is not None:
        column = tl.arange(0, WIDTH)
        own = tl.load(bias + block * SIZE + column, mask=column < SIZE, other=0.0)
        sums += own.to(tl.float32)[None, :]
    store_rows(out + block * SIZE, blocks * SIZE, sums, first, rows, SIZE, ROWS, WIDTH)
