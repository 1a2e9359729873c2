"""How many warps share a tile of a Triton kernel."""

import torch

LEAST = 4
MOST = {torch.float32: 16, torch.bfloat16: 8, torch.float16: 8}
# of a tile for each warp: with fewer warps, kernels compiled for sm_90 spill registers by kilobytes
BYTES = 2048


def warps_for(dtype: torch.dtype, elements: int) -> int:
    """For kernels whose largest tiles have so many elements."""
    return max(LEAST, min(elements * dtype.itemsize // BYTES, MOST[dtype]))
