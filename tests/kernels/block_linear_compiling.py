"""Compiles the Triton kernel of linear layers of blocks for GPUs that need not be there; prints what it compiled."""

from itertools import product
from typing import Any

import torch
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crisp_attention.kernels.triton_block_linear import DTYPES
from crisp_attention.kernels.triton_block_linear.operators import groups, options, sizes
from crisp_attention.kernels.triton_block_linear.passes import multiply
from crisp_attention.pruning.patterns import BLOCK_SIZES

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SHARED_MEMORY = 48 * 1024  # what every GPU gives without being asked for more


def source(states: str, constants: dict[str, Any]) -> ASTSource:
    """The kernel as its operator calls it, with addresses and strides that are multiples of 16."""
    types: dict[str, Any] = dict.fromkeys(("inputs", "packed", "bias", "out"), states)
    types |= dict.fromkeys(("index", "places"), "*i32")
    types |= dict.fromkeys(("stride", "rows", "blocks", "kept"), "i32") | dict.fromkeys(
        constants, "constexpr"
    )
    place = {name: (number,) for number, name in enumerate(multiply.arg_names)}
    aligned = {place[name]: [["tt.divisibility", 16]] for name in ("inputs", "packed", "out", "stride")}
    values = {place[name]: value for name, value in constants.items()}
    return ASTSource(multiply, {name: types[name] for name in multiply.arg_names}, values, aligned)


def main() -> None:
    patterns = ((1, 1), (2, 4), (4, 8), (1, 4))
    for capability, dtype, size, rows, (held, of) in product(
        (80, 90), DTYPES, BLOCK_SIZES, (1, 10**6), patterns
    ):
        lines = size * held // of
        constants = sizes(rows, lines, size, dtype) | groups(lines, size, of)
        constants |= {"places": None} if held == of else {}
        constants |= {"bias": None} if rows == 1 else {}
        found = compiled(
            source(POINTERS[dtype], constants),
            target=GPUTarget("cuda", capability, 32),
            options=options(lines, size),
        )
        assert found.metadata.shared <= SHARED_MEMORY, (capability, constants, found.metadata.shared)
        print(capability, dtype, constants)


if __name__ == "__main__":
    main()
