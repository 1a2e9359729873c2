"""The blocks of a call, chosen once: every kernel takes them as they are."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels import triton_choices
from crisp_attention.kernels.call import Call
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.layouts import BlockTopK, Full, Layout
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import answers, called
from crisp_attention.methods.rows import Rows

SINGLY = "block choices for single queries (causal and other masks, decoding, cross-attention)"


def with_blocks(call: Call) -> Call:
    """The call with the blocks that its layout chooses, if it does: once, for whatever computes it."""
    if isinstance(call.method, PerHead) or not may_choose(call.method.layout):
        return call
    with exactly(call.query.device):
        graph = choose_blocks(call.rows, call.method.layout)
    if graph is not None and not graph.is_whole and call.method.has_branch:
        return call  # which goes by whole blocks, or else by pairs
    return replace(call, blocks=graph)


def choose_blocks(rows: Rows, layout: Layout) -> BlockGraph | None:
    """Which blocks see each other by a layout; None where it decides on pairs."""
    if not may_choose(layout):
        return None
    with torch.no_grad():
        if isinstance(layout, BlockTopK) and triton_choices.chooses(rows, layout):
            return triton_choices.chosen(rows, layout)
        return layout.blocks(rows)


def visible_pairs(rows: Rows, method: Method, blocks: BlockGraph | None) -> Tensor:
    """The pairs that a method's layout shows, bool, broadcastable to (B, H, L, S).

    By the pairs, which are the definition; next to a branch by the blocks that the branch goes by as well.
    """
    if blocks is not None and blocks.is_whole and method.has_branch:
        return rows.valid & blocks.pairs(rows)
    return method.layout.visible(rows)


def may_choose(layout: Layout) -> bool:
    """Whether a layout chooses blocks; a derived layout may show anything, and has to choose them itself."""
    return type(layout).blocks is not Layout.blocks and answers(layout, "blocks")


def goes_by_sight(call: Call) -> bool:
    """Whether the call's layout tells by numbers of tokens which pairs see each other, and no blocks were chosen."""
    layout = call.layout
    tells = (
        type(layout).sight is not Layout.sight and answers(layout, "sight") and not layout.shows_everything()
    )
    return tells and call.blocks is None and call.valid is None and call.query.shape[2] <= call.key.shape[2]


def lacks_blocks(call: Call, layout: Layout) -> str | None:
    """What a kernel for whole blocks lacks of this call's layout, None if nothing."""
    if call.blocks is not None or type(layout) is Full:
        return None
    if may_choose(layout):
        return SINGLY
    return f"the layout {called(layout)}"


def lacks_parts(graph: BlockGraph) -> str | None:
    """What a kernel for whole blocks lacks of a graph, None if nothing."""
    if graph.choice is not None:
        return SINGLY
    return None if graph.is_whole else "bands and other blocks that are seen in part"


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off where it is on; the meta device has none."""
    is_on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()
