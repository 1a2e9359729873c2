"""The definition of sparse attention in plain PyTorch; every other kernel is tested against it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout

from crisp_attention.heads import LayerMethod, PerHead
from crisp_attention.pairs import valid_queries
from crisp_attention.rules.base import Learned, Rule
from crisp_attention.rules.random import head_seeds


@dataclass(frozen=True)
class Observation:
    """What one call computed, for measuring: all (B, H, L, S) but `queries`, (B or 1, H or 1, L).

    `products` are query · key * scale; `scores` these after softcap and bias.
    """

    products: Tensor
    scores: Tensor
    valid: Tensor
    keep: Tensor
    queries: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: LayerMethod,
    *,
    scale: float,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    learned: Learned | None = None,
    block_means: Tensor | None = None,
    observe: Callable[[Observation], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sparse attention of (B, H, L, D) queries over (B, G, S, D) keys and (B, G, S, Dv) values.

    `scores = query · key * scale`, capped to ±`softcap` by tanh, plus `bias`; the method's layout
    and rule keep some of the `valid` pairs; the rule weighs the kept scores (with one further logit
    per head, `sinks` (H,), that takes weight and gives nothing); dropout; weighted sum of values.
    Scores, selection and weights are float32 or better; the gradient flows through kept scores
    only; a row that keeps nothing gives zeros. `learned` holds the parameters of rules that have
    some; `block_means` (B, G, ceil(S / block_size), D) the mean keys of the blocks, if they are at
    hand. Returns output (B, H, L, Dv) and weights (B, H, L, S).
    """
    with torch.autocast(query.device.type, enabled=False):
        exact = torch.promote_types(query.dtype, torch.float32)
        shared = query.shape[1] // key.shape[1]
        key, value = _repeat_heads(key, shared), _repeat_heads(value, shared)
        products = torch.matmul(query.to(exact), key.to(exact).transpose(2, 3)) * scale
        scores = products
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if bias is not None:
            scores = scores + bias.to(exact)
        if valid is None:
            valid = torch.ones(1, 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
        valid = valid.expand(*valid.shape[:-2], *scores.shape[-2:])
        block_products = None
        if block_means is not None:
            means = _repeat_heads(block_means, shared).to(exact)
            block_products = torch.matmul(query.to(exact), means.transpose(2, 3)) * scale
        rows = _Rows(
            products.detach(),
            scores,
            valid,
            block_products,
            None if seed is None else head_seeds(seed, query.shape[1]),
            None if sinks is None else sinks.to(exact),
            learned or {},
        )
        keep, weights = rows.attend(method)
        if observe is not None:
            with torch.no_grad():
                queries = valid_queries(valid)
                pairs = valid.expand_as(scores)
                observe(Observation(rows.products, scores.detach(), pairs, keep, queries))
        weights = apply_dropout(weights, p=dropout).to(value.dtype)
        return torch.matmul(weights, value), weights


@dataclass(frozen=True)
class _Rows:
    """The rows of some heads, and what deciding on them takes."""

    products: Tensor
    scores: Tensor
    valid: Tensor
    block_products: Tensor | None
    seeds: Tensor | None
    sinks: Tensor | None
    learned: Learned

    def attend(self, method: LayerMethod) -> tuple[Tensor, Tensor]:
        """Kept pairs, and their weights."""
        if isinstance(method, PerHead):
            return self._by_head(method)
        with torch.no_grad():
            visible = method.layout.visible(self.valid, self.products, self.block_products)
            keep = method.rule.select(self.scores, visible, self.valid, self.seeds)
        weights = self._weigh(method.rule, keep)
        if method.rule.zeros_are_dropped:
            keep = keep & (weights != 0)
        return keep, weights

    def _by_head(self, method: PerHead) -> tuple[Tensor, Tensor]:
        groups = method.groups()
        keeps, weights = zip(*(self.of(h).attend(each) for each, h in groups.items()), strict=True)
        grouped = [head for heads in groups.values() for head in heads]
        order = sorted(range(len(grouped)), key=grouped.__getitem__)
        return torch.cat(keeps, dim=1)[:, order], torch.cat(weights, dim=1)[:, order]

    def _weigh(self, rule: Rule, keep: Tensor) -> Tensor:
        if self.sinks is None:
            return rule.weigh(self.scores, keep, self.learned)
        sink = self.sinks.reshape(1, -1, 1, 1).expand(*self.scores.shape[:-1], 1)
        logits = torch.cat([self.scores, sink], dim=-1)
        taken = torch.cat([keep, torch.ones_like(keep[..., :1])], dim=-1)
        return rule.weigh(logits, taken, self.learned)[..., :-1]

    def of(self, heads: list[int]) -> "_Rows":
        """The same for these heads only."""
        return _Rows(
            self.products[:, heads],
            self.scores[:, heads],
            self.valid if self.valid.shape[1] == 1 else self.valid[:, heads],
            None if self.block_products is None else self.block_products[:, heads],
            None if self.seeds is None else self.seeds[:, heads],
            None if self.sinks is None else self.sinks[heads],
            {name: value[heads] for name, value in self.learned.items()},
        )


def _repeat_heads(states: Tensor, times: int) -> Tensor:
    if times == 1:
        return states
    batch, heads, length, width = states.shape
    return (
        states[:, :, None]
        .expand(batch, heads, times, length, width)
        .reshape(batch, heads * times, length, width)
    )
