"""The physical limit: the arithmetic that cannot be avoided, at the rate of this machine's matrix products."""

import torch

from crisp_attention.bench.case import Case
from crisp_attention.bench.rounds import LEAST, Clock, warm_up
from crisp_attention.methods.layouts import BlockTopK

SIZES = (512, 1024, 2048)
DENSE_FORWARD, DENSE_BACKWARD = 2, 5  # products of all queries with all keys, or as large


def products(case: Case, density: float) -> float:
    """Products of the size queries × keys that a method cannot avoid, where dense attention needs 2 or 7.

    A rule has to see all scores, and again in the backward pass, as nothing of that size is stored;
    blocks are chosen before. All else (the weighted sum; backward, four products) is for kept pairs.
    """
    scores = density if isinstance(case.method.layout, BlockTopK) else 1.0
    forward = scores + (DENSE_FORWARD - 1) * density
    return forward + scores + (DENSE_BACKWARD - 1) * density if case.backward else forward


def arithmetic(case: Case, density: float) -> float:
    """The same as a ratio to the dense products."""
    return products(case, density) / (DENSE_FORWARD + case.backward * DENSE_BACKWARD)


def matrix_rate(dtype: str, device: str, clock: Clock) -> float:
    """The best rate of torch.matmul over some sizes, in floating point operations a second."""
    best = 0.0
    for size in SIZES:
        left, right = (torch.randn(size, size).to(device, getattr(torch, dtype)) for _ in range(2))

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right) -> torch.Tensor:
            return left @ right

        warm_up(multiply)
        best = max(best, *(2 * size**3 / clock(multiply) for _ in range(3 * LEAST)))
    return best
