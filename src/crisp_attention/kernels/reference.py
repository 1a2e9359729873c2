"""The definition of sparse attention in plain PyTorch; every other kernel is tested against it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout

from crisp_attention.kernels.around import branch_pairs, together
from crisp_attention.kernels.blocks import choose_blocks, exactly, visible_pairs
from crisp_attention.kernels.call import Call, parameters_of
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows, repeat_heads
from crisp_attention.methods.rules import Dense
from crisp_attention.methods.rules.base import Rule


@dataclass(frozen=True)
class Observation:
    """What one call computed, for measuring and fitting: its rows, kept pairs and which queries are not padding.

    `keep` is (B, H, L, S), `queries` (B or 1, H or 1, L); `value` (B, H, S, Dv). `branch` are the pairs that the
    method's branch attends to, bool (B, H, L, S), None without one that says so; `visible` those that the layout shows.
    """

    rows: Rows
    keep: Tensor
    queries: Tensor
    value: Tensor | None = None
    branch: Tensor | None = None
    visible: Tensor | None = None

    @property
    def products(self) -> Tensor:
        """query · key * scale, (B, H, L, S)."""
        return self.rows.products.detach()

    @property
    def scores(self) -> Tensor:
        """The products after softcap and bias."""
        return self.rows.scores.detach()

    @property
    def valid(self) -> Tensor:
        """Valid pairs, (B, H, L, S)."""
        return self.rows.valid.expand_as(self.rows.scores)


def attention(call: Call, *, observe: Callable[[Observation], None] | None = None) -> tuple[Tensor, Tensor]:
    """Output (B, H, L, Dv) and weights (B, H, L, S) of a call, as `Call` defines them.

    Scores, selection and weights are float32 or better; the gradient flows through kept scores
    only; a row that keeps nothing gives zeros.
    """
    query = call.query
    with exactly(query.device):
        value = repeat_heads(call.value, query.shape[1] // call.key.shape[1])
        rows = call.rows
        _ = rows.scores  # here, where they get a gradient, and not when a layout or a rule first asks
        sinks = None if call.sinks is None else call.sinks.to(rows.exact)
        visible, keep, weights = _attend(rows, call.method, sinks, call.blocks, call.dense)
        if observe is not None:
            with torch.no_grad():
                reached = branch_pairs(call, call.blocks) if call.method.has_branch else None
                seen = valid_queries(rows.valid), value.detach(), reached, visible
                observe(Observation(rows, keep, *seen))
        weights = _drop(weights, call.dropout, call.generator).to(value.dtype)
        return torch.matmul(weights, value), weights


def _attend(
    rows: Rows,
    method: LayerMethod,
    sinks: Tensor | None,
    blocks: BlockGraph | None,
    dense: slice | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that the layout shows, those of them that are kept, and their weights, all (B, H, L, S)."""
    if isinstance(method, PerHead):
        return _by_head(rows, method, sinks, dense)
    if dense is not None:
        return _beside_dense(rows, method, sinks, dense)
    with torch.no_grad():
        visible = visible_pairs(rows, method, blocks)
        keep = method.rule.select(rows, visible)
    weights = _weigh(rows, method.rule, keep, sinks)
    if method.rule.zeros_are_dropped:
        keep = keep & (weights != 0)
    return visible.expand_as(keep), keep, weights


def _beside_dense(
    rows: Rows, method: Method, sinks: Tensor | None, dense: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where the method decides on some tokens alone, which come after or before those that are dense."""
    count = rows.query.shape[2]
    first, end, _ = dense.indices(count)
    others = slice(end, count) if first == 0 else slice(0, first)
    with torch.no_grad():
        inner = rows.of_tokens(others)
        shown = method.layout.visible(inner)
        visible, keep = (rows.valid.expand_as(rows.scores).clone() for _ in range(2))
        visible[..., others, others] &= shown
        keep[..., others, others] &= method.rule.select(inner, shown)
    weights = _weigh(rows, method.rule, keep, sinks)
    if method.rule.zeros_are_dropped:
        own, softmax = weights[:, :, others], _weigh(rows, Dense(), keep, sinks)[:, :, dense]
        weights = torch.cat([softmax, own] if first == 0 else [own, softmax], dim=2)
        keep = keep & (weights != 0)
    return visible, keep, weights


def _by_head(
    rows: Rows, method: PerHead, sinks: Tensor | None, dense: slice | None
) -> tuple[Tensor, Tensor, Tensor]:
    groups = method.groups()
    shape = Shape(rows.query.shape[1], rows.key.shape[1], rows.query.shape[-1])
    found = []
    for each, heads in groups.items():
        own = rows.of(heads, parameters_of(heads, each, rows.parameters, shape))
        blocks = choose_blocks(own, each.layout) if each.has_branch else None
        found.append(_attend(own, each, None if sinks is None else sinks[heads], blocks, dense))
    parts = (together(list(each), list(groups.values())) for each in zip(*found, strict=True))
    visible, keep, weights = parts
    return visible, keep, weights


def _weigh(rows: Rows, rule: Rule, keep: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return rule.weigh(rows, keep)
    sink = sinks.reshape(1, -1, 1, 1).expand(*rows.scores.shape[:-1], 1)
    logits = torch.cat([rows.scores, sink], dim=-1)
    taken = torch.cat([keep, torch.ones_like(keep[..., :1])], dim=-1)
    return rule.weigh(rows.with_scores(logits), taken)[..., :-1]


def _drop(weights: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if generator is None or not share:
        return apply_dropout(weights, p=share)
    stay = torch.rand(weights.shape, generator=generator, device=generator.device) >= share
    return weights * (stay.to(weights.device, weights.dtype) / (1 - share))
