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


def attention(branch: Branch, call: Attended, output: Tensor, onto: Tensor | None = None) -> Tensor:
    """What the branch adds to the `output` of layout and rule (B, H, L, Dv), float32, added to `onto` if given."""
    from crisp_attention.kernels.cpu.linear.operators import linear

    assert call.blocks is not None
    assert isinstance(branch, Linear)
    blocks = call.blocks.blocks
    given = MAPS[branch.feature_map] == GIVEN
    query, key = (branch.features(call, states) if given else states for states in (call.query, call.key))
    projection = branch.projection(call)
    weight, bias = (None, None) if projection is None else (each.float() for each in projection)
    fused = onto if projection is not None and blocks.order is None else None
    found, weighed = linear(
        *(blocks.in_order(states.float()) for states in (query, key, call.value)),
        branch.marginal(call.blocks).expand(*call.query.shape[:2], -1, -1),
        blocks.lengths,
        weight,
        bias,
        None if fused is None else fused.float(),
        blocks.size,
        MAPS[branch.feature_map],
    )
    found = blocks.back(found)
    if projection is None:
        found = branch.added(call, output, found, blocks.back(weighed[..., None]) > 0)
    return found if onto is None or fused is not None else onto + found
