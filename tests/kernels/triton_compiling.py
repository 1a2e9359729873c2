"""Compiles the Triton kernels for GPUs that need not be there; prints the kernels' names and widths."""

from typing import Any

import torch
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crisp_attention.kernels.triton_blocks import operators as block_operators
from crisp_attention.kernels.triton_blocks import passes as block_passes
from crisp_attention.kernels.triton_blocks import shared_memory
from crisp_attention.kernels.triton_rows import WIDEST, operators, passes

FLOATS = {"cuts", "tops", "sums", "means"}
NUMBERS = {"scale", "number", "dropout", "dropout_scale"}
STATES = {"query", "key", "value", "given", "output", "d_query", "d_key", "d_value"}


def source(kernel: Any, constants: dict[str, Any], states: str) -> ASTSource:
    """The kernel with arguments as the operators pass them; pointers that it is not given are None."""
    given = {"count_of": "*i32", "candidates": "*fp32", "valid": "*u8", "seed": "*i64"}
    absent = {
        "count_of": constants.get("RULE") != passes.TOPK.value,
        "candidates": constants.get("RULE") != passes.TOPK.value,
        "valid": not constants["MASKED"],
        "seed": not constants.get("DROPOUT"),
    }
    constants = constants | {name: None for name, missing in absent.items() if missing}
    types: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("strides"):
            types[name] = ("i64", "i64", "i32", "i32")
        elif name in NUMBERS:
            types[name] = "fp32"
        else:
            known = given | dict.fromkeys(STATES, states) | dict.fromkeys(FLOATS, "*fp32") | {"lasts": "*i32"}
            types[name] = known.get(name, "i32")
    values = {(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names}
    return ASTSource(kernel, types, values, {})


def block_source(kernel: Any, constants: dict[str, Any], states: str) -> ASTSource:
    """A kernel over blocks, as the operators call it."""
    sums = "*bf16" if states == "*bf16" else "*fp32"
    whole = {"lengths", "blocks", "counts", "seeing", "seeing_counts"}
    known = dict.fromkeys(whole, "*i32") | dict.fromkeys(("sums", "chosen", "slopes"), sums)
    known |= dict.fromkeys(STATES | {"linear", "given_linear"}, states)
    known |= dict.fromkeys(
        ("weights", "chosen_weights", "slope_weights", "tops", "weighed", "means"), "*fp32"
    )
    known |= {"seed": "*i64"} | dict.fromkeys(NUMBERS, "fp32")
    if not constants.get("DROPOUT"):
        constants = constants | {"seed": None}
    types: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("strides"):
            types[name] = ("i64", "i64", "i32", "i32")
        else:
            types[name] = known.get(name, "i32")
    values = {(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names}
    return ASTSource(kernel, types, values, {})


def compile_blocks() -> None:
    """The kernels over blocks, with a linear part and dropout, and for wider heads without."""
    passes = ("attend", "query_gradients", "key_gradients")
    for capability, states, width, more in (
        (90, "*bf16", 128, True),
        (80, "*fp16", 64, True),
        (80, "*bf16", 256, False),
        (90, "*fp32", 64, False),
    ):
        dtype = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}[states]
        sizes = {"SIZE": 64, "WIDTH": width, "VALUE_WIDTH": width, "MAP": 0, "LINEAR": more, "DROPOUT": more}
        for name in (*(("key_sums",) if more else ()), *passes):
            kernel = getattr(block_passes, name)
            found = compiled(
                block_source(kernel, sizes, states),
                target=GPUTarget("cuda", capability, 32),
                options=block_operators.options(dtype, 64, width),
            )
            bound = shared_memory(dtype, 64, width, width, more)
            assert found.metadata.shared <= bound <= 160 * 1024, (
                name,
                found.metadata.shared,
            )  # that of an A100
            print(name, width)


def compile_rows() -> None:
    """The kernels over rows, with all that a call may ask for, and without."""
    for capability, states, every, width in (
        (90, "*bf16", True, 128),
        (80, "*fp16", False, 64),
        (80, "*fp32", True, 128),
        (80, "*bf16", False, WIDEST),
        (80, "*fp32", False, WIDEST),
    ):
        dtype = torch.float32 if states == "*fp32" else torch.bfloat16
        block = operators.block_size(dtype, width)
        flags = {"MASKED": every, "CAUSAL": every, "DROPOUT": every}
        kernels = [(passes.find_cuts, {"RULE": rule.value}) for rule in operators.RULES.values()]
        kernels += [(k, {}) for k in (passes.attend, passes.query_gradients, passes.key_gradients)]
        for kernel, more in kernels[(0 if width < WIDEST else 2) :]:
            sizes = {"BLOCK_M": block, "BLOCK_N": block, "WIDTH": width, "VALUE_WIDTH": width}
            found = compiled(
                source(kernel, sizes | flags | more, states),
                target=GPUTarget("cuda", capability, 32),
                options=operators.options(dtype, width),
            )
            assert found.metadata.shared <= 99 * 1024, kernel  # what every GPU since Ampere has
            print(kernel.fn.__name__, width)


if __name__ == "__main__":
    compile_rows()
    compile_blocks()
