"""How many warps share a tile of a Triton kernel."""

import torch

LEAST, MOST = 4, 8
# of a tile for each warp. On an H200, 64 × 128 numbers of bfloat16 are computed in half the time by 4 warps than by 8,
# which spill nothing; in float32, fewer warps than these spill registers by kilobytes
BYTES = {torch.float32: 4096, torch.bfloat16: 4096, torch.float16: 4096}


def warps_for(dtype: torch.dtype, elements: int) -> int:
    """For kernels whose largest tiles have so many elements."""
    return max(LEAST, min(elements * dtype.itemsize // BYTES[dtype], MOST))
