"""Triton's interpreter, which takes the place of a GPU where there is none, computes products as GPUs do."""

import importlib.util
import os
from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _products_as_on_gpus() -> Iterator[None]:
    """Every element of a product is the same sum, wherever it lies in the tile, and bfloat16 is a number.

    numpy's BLAS sums in one order or another depending on the place: two elements that are the same sum
    differ in the last bit of float32, and gradients that are exactly 0 on GPUs become 1e-7. In float64
    that bit is rounded away. Of bfloat16 the interpreter takes the bits for whole numbers.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def numbers(tile: TensorHandle) -> np.ndarray:
        if tile.dtype == tl.bfloat16:
            return (tile.data.astype(np.uint32) << 16).view(np.float32)
        return tile.data.astype(np.float32)

    def create_dot(self, one, other, accumulator, *_) -> TensorHandle:
        product = np.matmul(numbers(one), numbers(other), dtype=np.float64).astype(np.float32)
        return TensorHandle(product + accumulator.data, accumulator.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield
