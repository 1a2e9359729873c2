"""Rows of inputs times the blocks of a weight."""

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.block_linear.gelu import gelu
from crisp_attention.kernels.cpu.block_linear.groups import spread_groups
from crisp_attention.kernels.cpu.block_linear.job import BLOCK_LINEAR
from crisp_attention.kernels.cpu.native import (
    compiled,
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.processor import FEATURES
from crisp_attention.kernels.cpu.vectors import FLOAT, INDICES, INT, LANES, POINTER

# rows by two vectors of sums fill the registers, but for the factors
MANY, FEW = (12, 4) if "+avx512f" in FEATURES else (3, 1)


@intrinsic(prefer_literal=True)
def _panel(typing, out, out_row, a, a_row, b, index, kept, size, bias, has_bias, rows, width):
    """out[r, :width] = bias + the sum over k < kept of a[r, index[k] * size :][:size] · b[k * size :, :width].

    All sums stay in registers until the last block.
    """

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_row, a, a_row, b, index, kept, size, bias, has_bias, _, _ = arguments
        rows, width = (each.literal_value for each in types_.args[-2:])
        lanes = min(width, LANES)
        kind = ir.VectorType(FLOAT, lanes)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{lanes}f32"
        )

        def at(pointer: Any, offset: int) -> Any:
            moved = builder.gep(pointer, [ir.Constant(ir.IntType(64), offset)])
            return builder.bitcast(moved, kind.as_pointer())

        def spread(scalar: Any) -> Any:
            vector = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT(0))
            return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT, lanes), [0] * lanes))

        goals = [(r, column) for r in range(rows) for column in range(0, width, lanes)]
        sums = {goal: cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for goal in goals}
        for total in sums.values():
            builder.store(ir.Constant(kind, None), total)
        with builder.if_then(has_bias):
            for (_, column), total in sums.items():
                builder.store(builder.load(at(bias, column), align=4), total)
        lefts = [builder.gep(a, [builder.mul(a_row, a_row.type(r))]) for r in range(rows)]
        with cgutils.for_range(builder, kept) as blocks:
            chosen = builder.sext(builder.load(builder.gep(index, [blocks.index])), size.type)
            start = builder.mul(chosen, size)
            lines = builder.gep(b, [builder.mul(blocks.index, builder.mul(size, size))])
            with cgutils.for_range(builder, size) as loop:
                line = builder.gep(lines, [builder.mul(loop.index, size)])
                right = {c: builder.load(at(line, c), align=4) for c in range(0, width, lanes)}
                place = builder.add(start, loop.index)
                for r, row in enumerate(lefts):
                    left = spread(builder.load(builder.gep(row, [place])))
                    for column, each in right.items():
                        total = sums[r, column]
                        builder.store(builder.call(fma, [left, each, builder.load(total)]), total)
        for (r, column), total in sums.items():
            goal = builder.gep(out, [builder.mul(out_row, out_row.type(r))])
            builder.store(builder.load(total), at(goal, column), align=4)
        return context.get_dummy_value()

    strided = (POINTER, types.int64)
    return types.void(
        *strided, *strided, POINTER, INDICES, types.int64, types.int64, POINTER, types.boolean, rows, width
    ), code


@compiled
def _spread(job, out, first, count, of, width):
    """Put `count` blocks together from the weights of their groups, from block `first` on."""
    size, kept = job.size, job.lines * of // job.size
    for each in range(count):
        weights = floats_at(job.packed + 4 * (first + each) * job.lines * size)
        places = indices_at(job.places + 4 * (first + each) * job.words * size)
        whole = floats_after(out, each * size * size)
        for c in range(0, size, width):
            more, where = floats_after(weights, c), indices_after(places, c)
            spread_groups(floats_after(whole, c), more, where, size, kept, of, width)


@compiled
def _whole(job, scratch, block, blocks, width):
    """The address of the blocks of `blocks` rows of blocks, whole: in the scratch if they are held as groups."""
    first, count, out = block * job.kept, blocks * job.kept, floats_at(scratch)
    if job.of == 1:
        return job.packed + 4 * first * job.size * job.size
    if job.of == 4:
        _spread(job, out, first, count, 4, width)
    elif job.of == 8:
        _spread(job, out, first, count, 8, width)
    else:
        _spread(job, out, first, count, 16, width)
    return scratch


@compiled
def _rows(job, whole, first, rows, block, blocks, width):
    """Outputs of `blocks` rows of blocks, `width` columns of each at a time, for a panel of `rows` inputs."""
    size, goal = job.size, job.blocks * job.size
    left = floats_at(job.inputs + 4 * first * job.width)
    for each in range(block, block + blocks):
        right = floats_at(whole + 4 * (each - block) * job.kept * size * size)
        index = indices_at(job.index + 4 * each * job.kept)
        out = floats_at(job.out + 4 * (first * goal + each * size))
        bias = floats_at(job.bias + 4 * each * size)
        for c in range(0, size, width):
            at, own, more = floats_after(out, c), floats_after(right, c), floats_after(bias, c)
            _panel(at, goal, left, job.width, own, index, job.kept, size, more, job.bias != 0, rows, width)
            if job.gelu:
                gelu(at, goal, rows, width)


@compiled
def _columns(job, scratch, first, end, block, blocks, width):
    whole = _whole(job, scratch, block, blocks, width)
    r = first
    while end - r >= MANY:
        _rows(job, whole, r, MANY, block, blocks, width)
        r += MANY
    while end - r >= FEW:
        _rows(job, whole, r, FEW, block, blocks, width)
        r += FEW
    while r < end:
        _rows(job, whole, r, 1, block, blocks, width)
        r += 1


@entry(BLOCK_LINEAR)
def forward(jobs):
    """Take some rows of blocks, for a stretch of inputs, until none is left.

    Outputs are written in their order, row after row: scattered, they would wait for memory.
    """
    job = carray(jobs, 1)[0]
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    item = next_item(jobs)
    groups = (job.blocks + job.group - 1) // job.group
    stretches = (job.rows + job.stretch - 1) // job.stretch
    while item < stretches * groups:
        first, block = item // groups * job.stretch, item % groups * job.group
        end, blocks = min(first + job.stretch, job.rows), min(job.group, job.blocks - block)
        if job.size == 8:
            _columns(job, scratch, first, end, block, blocks, 8)
        elif job.size == 16:
            _columns(job, scratch, first, end, block, blocks, 16)
        else:
            _columns(job, scratch, first, end, block, blocks, 32)
        item = next_item(jobs)
