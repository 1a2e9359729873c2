"""The branch `Linear` on CPUs: sums of blocks, feature maps and the projection in one pass over queries and keys."""

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.linear.plan import ELU, GIVEN, RELU, SOFTMAX
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.methods.branches import Attended, Branch, Linear
from crisp_attention.methods.part import called

SMALLEST = 8  # tokens in a block
MAPS = {"softmax": SOFTMAX, "elu": ELU, "relu": RELU, "hedgehog": GIVEN}


def lacks(branch: Branch, call: Attended) -> str | None:
    """What this kernel cannot do of a branch of the call, None if it can."""
    if type(branch) is not Linear:
        return f"the branch {called(branch)}"
    if call.query.device.type != "cpu":
        return f"the device {call.query.device.type}"
    if call.query.dtype == torch.float64 or call.value.dtype == torch.float64:
        return "float64"
    if call.blocks is None:
        return "block choices for single queries (causal and other masks, decoding, cross-attention)"
    if call.blocks.blocks.size < SMALLEST or branch.is_short(call):
        return f"blocks of {call.blocks.blocks.size} tokens, which the definition is as fast with"
    if 0 in call.query.shape or 0 in call.value.shape:
        return "empty tensors"
    if call.query.shape[3] % LANES:
        return f"heads of width {call.query.shape[3]} (a multiple of {LANES} is needed)"
    return None


def attention(branch: Branch, call: Attended, output: Tensor) -> Tensor:
    """What the branch adds to the `output` of layout and rule (B, H, L, Dv), float32."""
    from crisp_attention.kernels.cpu.linear.operators import linear

    assert call.blocks is not None
    assert isinstance(branch, Linear)
    blocks = call.blocks.blocks
    given = MAPS[branch.feature_map] == GIVEN
    query, key = (branch.features(call, states) if given else states for states in (call.query, call.key))
    weight, bias = projection(branch, call)
    found, weighed = linear(
        *(blocks.in_order(states.float()) for states in (query, key, call.value)),
        marginal_of(branch, call),
        blocks.lengths,
        weight,
        bias,
        blocks.size,
        MAPS[branch.feature_map],
    )
    found = blocks.back(found)
    if weight is not None:
        return found
    return branch.added(call, output, found, blocks.back(weighed[..., None]) > 0)


def adds_onto(branch: Branch | None, call: Attended) -> bool:
    """Whether the output is that of the critical blocks plus what `crisp::sparse_linear` computes with them."""
    if (
        not isinstance(branch, Linear)
        or branch.combine not in ("project", "sum")
        or MAPS[branch.feature_map] == GIVEN
    ):
        return False
    return lacks(branch, call) is None and call.blocks is not None and call.blocks.blocks.size % LANES == 0


def projection(branch: Linear, call: Attended) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias in float32, None without a projection."""
    found = branch.projection(call)
    return (None, None) if found is None else (found[0].float(), found[1].float())


def marginal_of(branch: Linear, call: Attended) -> Tensor:
    """The marginal blocks, bool (B, H, n, n)."""
    assert call.blocks is not None
    return branch.marginal(call.blocks).expand(*call.query.shape[:2], -1, -1)
