"""What compiled code needs of its surroundings: pointers and a shared counter."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, from_dtype, njit, types
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.vectors import INDICES, POINTER

# division by zero gives infinities and NaN, as in numpy; sums may be taken in any order
compiled = njit(error_model="numpy")
summing = njit(error_model="numpy", fastmath={"reassoc", "nsz", "contract"})

BYTES, DOUBLES = types.CPointer(types.uint8), types.CPointer(types.float64)


def job_type(*integers: str, floats: tuple[str, ...] = ()) -> np.dtype:
    """A record of numbers and addresses that a call hands to its threads.

    Its first two fields count: the items of work that are taken, and the threads that began.
    """
    fields = [(name, np.int64) for name in ("taken", "began", *integers)]
    return np.dtype([*fields, *((name, np.float64) for name in floats)], align=True)


def entry(job: np.dtype) -> Callable[[Callable[[Any], None]], Any]:
    """Compiles a function that works on such a job, for threads to call; cached on disk where that can be written."""
    signature = types.void(types.CPointer(from_dtype(job)))

    def compiled_entry(work: Callable[[Any], None]) -> Any:
        try:
            return cfunc(signature, cache=True, error_model="numpy")(work)
        except RuntimeError:  # no folder of the package or of the user takes a cache
            return cfunc(signature, error_model="numpy")(work)

    return compiled_entry


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(typing, address):
        def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), code

    return pointer


floats_at = _pointer(POINTER)
indices_at = _pointer(INDICES)
bytes_at = _pointer(BYTES)
doubles_at = _pointer(DOUBLES)


def _reinterpreted(source: Any, result: Any) -> Any:
    @intrinsic
    def reinterpreted(typing, value):
        def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(result))

        return result(source), code

    return reinterpreted


bits_of, float_of = _reinterpreted(types.float32, types.int32), _reinterpreted(types.int32, types.float32)
floats_of = _reinterpreted(INDICES, POINTER)


def _counter(field: int) -> Any:
    @intrinsic
    def claim(typing, job):
        def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
            counters = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
            counter = builder.gep(counters, [ir.Constant(ir.IntType(32), field)])
            return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(job), code

    return claim


next_item, next_thread = _counter(0), _counter(1)


def _moved(kind: Any) -> Any:
    @intrinsic
    def moved(typing, pointer, offset):
        def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
            return builder.gep(arguments[0], [arguments[1]])

        return kind(kind, types.int64), code

    return moved


floats_after, indices_after, bytes_after, doubles_after = map(_moved, (POINTER, INDICES, BYTES, DOUBLES))
