"""The kernel as an operator of torch, which torch.compile sees."""

import torch
import triton
from torch import Tensor

from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.triton_block_linear.passes import multiply

OPTIONS = {"num_warps": 4, "num_stages": 3}  # for Triton's compiler


def forward_now(inputs: Tensor, packed: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
    """As `block_linear` says."""
    out = _empty(inputs, packed)
    if not len(inputs):
        return out
    inputs, packed, index = by_rows(inputs), packed.contiguous(), index.contiguous()
    blocks, kept, size, _ = packed.shape
    with torch.cuda.device_of(inputs):
        multiply[lambda given: (triton.cdiv(len(inputs), given["ROWS"]) * blocks,)](
            inputs=inputs,
            packed=packed,
            index=index,
            bias=None if bias is None else bias.contiguous(),
            out=out,
            stride=inputs.stride(0),
            rows=len(inputs),
            blocks=blocks,
            kept=kept,
            **sizes(len(inputs), size, inputs.dtype),
            **OPTIONS,
        )
    return out


forward = torch.library.custom_op("crisp::triton_block_linear", forward_now, mutates_args=())


@forward.register_fake
def _empty(inputs: Tensor, packed: Tensor, *_: Tensor | None) -> Tensor:
    return inputs.new_empty(inputs.shape[0], packed.shape[0] * packed.shape[2])


def sizes(rows: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The tiles for so many rows and blocks of a size; larger ones spill registers of sm_80."""
    width = max(size, 16)  # the least of a product
    most = 64 if dtype == torch.float32 else 128
    return {
        "SIZE": size,
        "WIDTH": width,
        "DEPTH": min(width, 32),
        "ROWS": min(max(triton.next_power_of_2(rows), 16), most),
    }
