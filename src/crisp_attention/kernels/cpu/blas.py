"""The address of a single-precision matrix product: torch's own where it can be found, else SciPy's."""

import ctypes
from functools import cache
from pathlib import Path

import torch


@cache
def sgemm_address() -> int:
    """Where Fortran's `sgemm`, with 32-bit integers, lies in this process."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if library.exists():
        try:
            function = ctypes.CDLL(str(library)).sgemm_
        except AttributeError:
            pass
        else:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    from numba.extending import get_cython_function_address

    return int(get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
