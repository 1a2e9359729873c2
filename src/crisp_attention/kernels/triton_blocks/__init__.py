"""Attention to blocks and bands on GPUs, in Triton: softmax to what is seen and, with the branch `Linear`, linear
attention to the marginal blocks in the same pass.

Nothing of size L × L is held, forward or backward. Everything runs on the host as well, in Triton's interpreter.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad

from crisp_attention.kernels.blocks import lacks_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.lightest import lighter
from crisp_attention.kernels.triton_choices import rest, touched
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import called
from crisp_attention.methods.ranking import is_plain
from crisp_attention.methods.rules import Dense

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS, SIZES = (16, 32, 64, 128, 256), (16, 32, 64, 128)
AHEAD = 128  # heads up to which tiles are loaded before their turn
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
    widest, state = max(width, value_width), width * value_width if linear else 0
    # products in three parts need what they are of twice, and loads ahead of their use a second tile
    single = dtype == torch.float32
    tiles, squares = 6 if single or widest <= AHEAD else 4, 2 if single else 1
    return max(size * (tiles * widest + squares * size), 3 * size * widest + state) * dtype.itemsize + 1024


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
    from crisp_attention.kernels.triton_choices import picking

    graph, method = call.blocks, call.method
    assert graph is not None
    assert isinstance(method, Method)
    blocks = graph.blocks
    branch = method.branch if computes_branch(call) else None
    assert branch is None or isinstance(branch, Linear)
    query, key, value = map(blocks.in_order, (call.query, call.key, call.value))
    marginal = None if branch is None else _marginal(branch, graph)
    spans, picked, seen = call.span, None, graph.seen
    if graph.is_whole:  # whose tokens are in order
        spans = None if blocks.lengths is None else pad(blocks.lengths[:, None], (1, 0))
    elif graph.choice is not None:
        picked = picking.picked(
            call.query, call.key, graph.choice, blocks.size, call.scale, call.causal, call.first_query, spans
        )
        seen = touched(picked, blocks.size)
    run = lighter(operators.forward_now, operators.node, operators.forward, (query, key, value))
    output, linear, _, weighed = run(
        query,
        key,
        value,
        seen,
        marginal,
        None if spans is None else spans.int(),
        picked,
        call.draw() if call.dropout else None,
        None if graph.band is None else graph.band.numbers(key.shape[2]),
        call.causal,
        call.first_query,
        call.scale,
        blocks.size,
        0 if branch is None else MAPS[branch.feature_map],
        call.dropout,
    )
    output = blocks.back(output)
    if branch is None:
        return output
    linear, reached = blocks.back(linear).float(), blocks.back(weighed[..., None]) > 0
    return (output.float() + branch.added(call, output, linear, reached)).to(output.dtype)


def _marginal(branch: Linear, graph: BlockGraph) -> Tensor:
    assert graph.seen is not None
    if graph.ranked is not None and branch.scope == "marginal" and is_plain(graph.ranked):
        return rest(graph, branch.negligible)
    return branch.marginal(graph).expand_as(graph.seen)
