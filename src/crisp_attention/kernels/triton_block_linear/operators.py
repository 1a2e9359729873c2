"""The kernel as an operator of torch, which torch.compile sees."""

import torch
import triton
from torch import Tensor

from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.packing import bits
from crisp_attention.kernels.triton_block_linear.passes import multiply


def forward_now(
    inputs: Tensor, packed: Tensor, index: Tensor, bias: Tensor | None, places: Tensor | None, of: int
) -> Tensor:
    """As `block_linear` says."""
    out = _empty(inputs, packed)
    if not len(inputs):
        return out
    inputs, packed, index = by_rows(inputs), packed.contiguous(), index.contiguous()
    blocks, kept, lines, size = packed.shape
    with torch.cuda.device_of(inputs):
        multiply[lambda given: (triton.cdiv(len(inputs), given["ROWS"]) * blocks,)](
            inputs=inputs,
            packed=packed,
            index=index,
            places=None if places is None else places.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            out=out,
            stride=inputs.stride(0),
            rows=len(inputs),
            blocks=blocks,
            kept=kept,
            **sizes(len(inputs), lines, size, inputs.dtype),
            **groups(lines, size, of),
            **options(lines, size),
        )
    return out


forward = torch.library.custom_op("crisp::triton_block_linear", forward_now, mutates_args=())


@forward.register_fake
def _empty(inputs: Tensor, packed: Tensor, *_: object) -> Tensor:
    return inputs.new_empty(inputs.shape[0], packed.shape[0] * packed.shape[3])


def sizes(rows: int, lines: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The tiles for so many rows and blocks of a size; larger ones spill registers of sm_80."""
    width = max(size, 16)  # the least of a product
    most = 64 if dtype == torch.float32 else 128
    return {
        "SIZE": size,
        "WIDTH": width,
        "DEPTH": min(width, 32 if lines == size else 16),
        "ROWS": min(max(triton.next_power_of_2(rows), 16), most),
    }


def groups(lines: int, size: int, of: int) -> dict[str, int]:
    """How a block of so many lines holds its weights."""
    return {"LINES": lines, "HELD": lines * of // size, "OF": of, "BITS": bits(of)}


def options(lines: int, size: int) -> dict[str, int]:
    """For Triton's compiler; every weight of a group is read on its own, and takes shared memory of its own."""
    return {"num_warps": 4, "num_stages": 3 if lines == size else 2}
