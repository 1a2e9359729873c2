"""Attention to whole blocks on GPUs, in Triton: softmax inside the seen ones and, with the branch `Linear`, linear
attention to the marginal ones in the same pass.

Nothing of size L × L is held, forward or backward. Everything runs on the host as well, in Triton's interpreter.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from crisp_attention.kernels.blocks import lacks_blocks, lacks_parts
from crisp_attention.kernels.call import Call
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.rules import Dense

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS, SIZES = (16, 32, 64, 128, 256), (16, 32, 64, 128)
MAPS = {"softmax": 0, "elu": 1, "relu": 2}


def lacks(call: Call) -> str | None:
    """What the kernel lacks for this call, None if it can do it."""
    query, method = call.query, call.method
    if find_spec("triton") is None:
        return "the package triton"
    devices = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
    if query.device.type not in devices:
        return f"tensors on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"the dtype {str(query.dtype).removeprefix('torch.')}"
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return "the dtype bfloat16 in Triton's interpreter, whose products take its bits for whole numbers"
    if isinstance(method, PerHead):
        return "a method for each head"
    if missing := lacks_blocks(call, method.layout):
        return missing
    if call.blocks is None:
        return f"the layout {called(method.layout)}"
    if missing := lacks_parts(call.blocks):
        return missing
    if type(method.rule) is not Dense:
        return f"the rule {called(method.rule)}"
    if 0 in query.shape:
        return "empty tensors"
    for what, number, known in (
        ("blocks of {} tokens", call.blocks.blocks.size, SIZES),
        ("heads of width {}", query.shape[3], WIDTHS),
        ("values of width {}", call.value.shape[3], WIDTHS),
    ):
        if number not in known:
            return f"{what.format(number)} (it has {', '.join(map(str, known))})"
    if query.device.type == "cuda":
        needed = shared_memory(
            query.dtype, call.blocks.blocks.size, query.shape[3], call.value.shape[3], computes_branch(call)
        )
        gpu = torch.cuda.get_device_properties(query.device)
        there = getattr(
            gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block
        )  # which ROCm has not
        if needed > there:
            return f"shared memory (it needs {needed >> 10} KiB, this GPU has {there >> 10})"
    return call.modifier


def shared_memory(dtype: torch.dtype, size: int, width: int, value_width: int, linear: bool) -> int:
    """Bytes that its passes need at most, for blocks of `size` tokens: a bound for what the compiler says."""
    tile, state = size * max(width, value_width), width * value_width if linear else 0
    return max(4 * tile + size * size, 3 * tile + state) * dtype.itemsize + 2048


def computes_branch(call: Call) -> bool:
    """Whether `attention` gives the output with that of the method's branch."""
    method = call.method
    if not isinstance(method, Method) or type(method.branch) is not Linear:
        return False
    # a learned temperature is in the queries, which the branch takes as they are
    return method.branch.feature_map in MAPS and not isinstance(method.rule.temperature, str)


def attention(call: Call) -> Tensor:
    """Output (B, H, L, Dv) of a call that lacks nothing; differentiable in query, key and value."""
    from crisp_attention.kernels.triton_blocks import operators

    graph, method = call.blocks, call.method
    assert graph is not None
    assert graph.seen is not None
    assert isinstance(method, Method)
    blocks = graph.blocks
    branch = method.branch if computes_branch(call) else None
    assert branch is None or isinstance(branch, Linear)
    query, key, value = map(blocks.in_order, (call.query, call.key, call.value))
    lengths = blocks.lengths
    if lengths is None:
        lengths = torch.full((query.shape[0],), blocks.length, dtype=torch.int32, device=query.device)
    marginal = None if branch is None else branch.marginal(graph).expand_as(graph.seen)
    output, linear, _, weighed = operators.forward(
        query,
        key,
        value,
        graph.seen,
        marginal,
        lengths,
        call.draw() if call.dropout else None,
        scale=call.scale,
        block_size=blocks.size,
        feature_map=0 if branch is None else MAPS[branch.feature_map],
        dropout=call.dropout,
    )
    output = blocks.back(output)
    if branch is None:
        return output
    linear, reached = blocks.back(linear).float(), blocks.back(weighed[..., None]) > 0
    return (output.float() + branch.added(call, output, linear, reached)).to(output.dtype)
