"""Linear layers whose weights are blocks, as many in every row of blocks, on GPUs, in Triton.

Tested in Triton's interpreter, compiled for sm_80 and sm_90, and run on an H200 (docs/performance.md), but for blocks
that are held as groups, which no GPU has run.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from crisp_attention.kernels.lightest import lightest

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def computes(inputs: Tensor) -> bool:
    """Whether the kernel is for these: in one of its dtypes, on NVIDIA's GPUs from Ampere on, with Triton installed."""
    if inputs.device.type != "cuda" or inputs.dtype not in DTYPES or find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_properties(inputs.device).major >= 8


def block_linear(
    inputs: Tensor,
    packed: Tensor,
    index: Tensor,
    bias: Tensor | None,
    places: Tensor | None = None,
    of: int = 1,
) -> Tensor:
    """Rows (N, inputs) times the blocks of a weight, plus a bias, (N, outputs), all in one dtype, without gradients.

    `packed` (R, K, B, B) are the K blocks of every row of blocks, each transposed (inputs, outputs), and `index` (R, K)
    int32 says which block of inputs each is for. With `places` (R, K, words, B) `packed` (R, K, lines, B) are weights
    of groups of `of` inputs, as `kernels.packing` packs them. Products are added up in float32; those of float32 are
    three of TF32, which leave out 2**-22 of each.
    """
    from crisp_attention.kernels.triton_block_linear import operators

    run = lightest(operators.forward_now, operators.forward, (inputs, packed))
    return run(inputs, packed, index, bias, places, of)
