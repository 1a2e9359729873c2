"""How many warps share a tile of a Triton kernel."""

import torch

LEAST, MOST = 4, 8
BYTES = (
    4096  # of a tile for each warp: half as many took twice the time on an H200, though they spill nothing
)


def warps_for(dtype: torch.dtype, elements: int) -> int:
    """For kernels whose largest tiles have so many elements."""
    return max(LEAST, min(elements * dtype.itemsize // BYTES, MOST))
