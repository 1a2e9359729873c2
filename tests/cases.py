"""The methods and the inputs that several test files share."""

from collections.abc import Callable

import torch
from torch import Tensor

from crisp_attention.kernels import dispatch, reference
from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule

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
