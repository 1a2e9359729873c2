"""The methods and the inputs that several test files share."""

from collections.abc import Callable

import torch
from torch import Tensor

from crisp_attention import BlockTopK, Dense, Entmax, Method, NofM, RandomK, Threshold, TopK, TopP, Window
from crisp_attention.kernels import dispatch, reference
from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule

METHODS = {
    "dense": Method(rule=Dense()),
    "topk": Method(rule=TopK(0.6)),
    "topk, sharper": Method(rule=TopK(0.6, temperature=4)),
    "topp": Method(rule=TopP(0.7)),
    "threshold": Method(rule=Threshold(0.5)),
    "nofm": Method(rule=NofM(1, 3)),
    "entmax": Method(rule=Entmax()),
    "sparsemax": Method(rule=Entmax(2)),
    "entmax 1.3": Method(rule=Entmax(1.3)),
    "random": Method(rule=RandomK(0.6)),
    "window": Method(layout=Window(3, global_tokens=1)),
    "window+topk": Method(layout=Window(5), rule=TopK(0.5, min_keep=2)),
    "block_topk": Method(layout=BlockTopK(0.6, block_size=2)),
    "block_topk+topk": Method(BlockTopK(0.4, block_size=3, sink_blocks=1), TopK(0.5)),
    "window+random": Method(layout=Window(5), rule=RandomK(0.5)),
}
SEED = torch.tensor(11)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def self_attention(
    batch: int = 2, heads: int = 4, groups: int = 2, length: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a self-attention with grouped heads."""
    return (
        normal(batch, heads, length, 6, seed=1, dtype=dtype),
        normal(batch, groups, length, 6, seed=2, dtype=dtype),
        normal(batch, groups, length, 5, seed=3, dtype=dtype),
    )


def selected(rule: Rule, scores: Tensor, visible: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
    """The pairs that a rule keeps of those that are visible, of all by default, and valid."""
    visible = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible
    return rule.select(Rows.of_scores(scores, visible, seed=seed), visible)


def shown(layout: Layout, valid: Tensor) -> Tensor:
    """The pairs that a layout shows of the valid ones, without a look at scores."""
    return layout.visible(Rows.of_scores(torch.zeros(valid.shape), valid))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: LayerMethod,
    *,
    observe: Callable[[reference.Observation], None] | None = None,
    **more,
) -> tuple[Tensor, Tensor]:
    """The reference's output and weights."""
    call = Call(query, key, value, method, **more)
    output, weights = dispatch.attention(call, dispatch.REFERENCE, observe=observe, weights=True)
    assert weights is not None
    return output, weights
