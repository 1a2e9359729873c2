"""Blocks put together from the few weights of each group, for all rows of inputs that are multiplied by them."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.vectors import FLOAT, INDICES, INT, LANES, POINTER


@intrinsic(prefer_literal=True)
def spread_groups(typing, out, weights, places, size, kept, of, width):
    """out[g · of + p, c] is weight j < `kept` of group g whose place is p, or 0, for `width` columns c.

    A line of each is `size` long. Line g · kept + j of `weights` holds weight j of group g; `places` is as
    in `kernels.packing`.
    """

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, weights, places, size, kept, _, _ = arguments
        of, width = (each.literal_value for each in types_.args[-2:])
        # as `packing.bits` has it: of imports from outside, the cache on disk would not notice changes
        bits = (of - 1).bit_length()
        fit, lanes = size.type(32 // bits), min(width, LANES)
        floats, ints = ir.VectorType(FLOAT, lanes), ir.VectorType(INT, lanes)

        def at(base: Any, line: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(base, [builder.mul(line, size)]), kind.as_pointer())

        def constant(value: int) -> Any:
            return ir.Constant(ints, [value] * lanes)

        def spread(scalar: Any) -> Any:
            vector = builder.insert_element(ir.Constant(ints, ir.Undefined), scalar, INT(0))
            return builder.shuffle_vector(vector, vector, constant(0))

        found = [cgutils.alloca_once(builder, floats) for _ in range(of)]
        for column in range(0, width, lanes):
            goal, own, packed = (builder.gep(each, [size.type(column)]) for each in (out, weights, places))
            with cgutils.for_range(builder, builder.udiv(size, size.type(of))) as groups:
                for each in found:
                    builder.store(ir.Constant(floats, None), each)
                with cgutils.for_range(builder, kept) as lines:
                    line = builder.add(builder.mul(groups.index, kept), lines.index)
                    word = builder.load(at(packed, builder.udiv(line, fit), ints), align=4)
                    shift = builder.trunc(builder.mul(builder.urem(line, fit), size.type(bits)), INT)
                    place = builder.and_(builder.lshr(word, spread(shift)), constant(of - 1))
                    weight = builder.load(at(own, line, floats), align=4)
                    for number, each in enumerate(found):
                        here = builder.icmp_unsigned("==", place, constant(number))
                        builder.store(builder.select(here, weight, builder.load(each)), each)
                first = builder.mul(groups.index, size.type(of))
                for number, each in enumerate(found):
                    line = builder.add(first, size.type(number))
                    builder.store(builder.load(each), at(goal, line, floats), align=4)
        return context.get_dummy_value()

    return types.void(POINTER, POINTER, INDICES, types.int64, types.int64, of, width), code
