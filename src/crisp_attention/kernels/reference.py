"""The definition of sparse attention in plain PyTorch; every other kernel is tested against it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout

from crisp_attention.kernels.call import Call, parameters_of
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.method import Method
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules.base import Rule
from crisp_attention.methods.rules.random import head_seeds


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


def attention(call: Call, *, observe: Callable[[Observation], None] | None = None) -> tuple[Tensor, Tensor]:
    """Output (B, H, L, Dv) and weights (B, H, L, S) of a call, as `Call` defines them.

    Scores, selection and weights are float32 or better; the gradient flows through kept scores
    only; a row that keeps nothing gives zeros.
    """
    query = call.query
    with exactly(query.device):
        exact = torch.promote_types(query.dtype, torch.float32)
        shared = query.shape[1] // call.key.shape[1]
        key, value = _repeat_heads(call.key, shared), _repeat_heads(call.value, shared)
        products = torch.matmul(query.to(exact), key.to(exact).transpose(2, 3)) * call.scale
        scores = products
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        if call.bias is not None:
            scores = scores + call.bias.to(exact)
        valid = call.pairs
        if valid is None:
            valid = torch.ones(1, 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
        valid = valid.expand(*valid.shape[:-2], *scores.shape[-2:])
        block_products = None
        if call.block_means is not None:
            means = _repeat_heads(call.block_means, shared).to(exact)
            block_products = torch.matmul(query.to(exact), means.transpose(2, 3)) * call.scale
        rows = _Rows(
            products.detach(),
            scores,
            valid,
            block_products,
            None if call.seed is None else head_seeds(call.seed, query.shape[1]),
            None if call.sinks is None else call.sinks.to(exact),
            call.parameters,
            call.shape,
        )
        keep, weights = rows.attend(call.method)
        if observe is not None:
            with torch.no_grad():
                queries = valid_queries(valid)
                pairs = valid.expand_as(scores)
                observe(Observation(rows.products, scores.detach(), pairs, keep, queries))
        weights = _drop(weights, call.dropout, call.generator).to(value.dtype)
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
    parameters: Mapping[str, Tensor]
    shape: Shape

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
        keeps, weights = zip(*(self.of(h, each).attend(each) for each, h in groups.items()), strict=True)
        grouped = [head for heads in groups.values() for head in heads]
        order = sorted(range(len(grouped)), key=grouped.__getitem__)
        return torch.cat(keeps, dim=1)[:, order], torch.cat(weights, dim=1)[:, order]

    def _weigh(self, rule: Rule, keep: Tensor) -> Tensor:
        if self.sinks is None:
            return rule.weigh(self.scores, keep, self.parameters)
        sink = self.sinks.reshape(1, -1, 1, 1).expand(*self.scores.shape[:-1], 1)
        logits = torch.cat([self.scores, sink], dim=-1)
        taken = torch.cat([keep, torch.ones_like(keep[..., :1])], dim=-1)
        return rule.weigh(logits, taken, self.parameters)[..., :-1]

    def of(self, heads: list[int], method: Method) -> "_Rows":
        """The same for these heads only."""
        return _Rows(
            self.products[:, heads],
            self.scores[:, heads],
            self.valid if self.valid.shape[1] == 1 else self.valid[:, heads],
            None if self.block_products is None else self.block_products[:, heads],
            None if self.seeds is None else self.seeds[:, heads],
            None if self.sinks is None else self.sinks[heads],
            parameters_of(heads, method, self.parameters, self.shape),
            self.shape,
        )


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off, on devices that have it; the meta device has none."""
    has_it = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_it else nullcontext()


def _drop(weights: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if generator is None or not share:
        return apply_dropout(weights, p=share)
    stay = torch.rand(weights.shape, generator=generator, device=generator.device) >= share
    return weights * (stay.to(weights.device, weights.dtype) / (1 - share))


def _repeat_heads(states: Tensor, times: int) -> Tensor:
    if times == 1:
        return states
    batch, heads, length, width = states.shape
    return (
        states[:, :, None]
        .expand(batch, heads, times, length, width)
        .reshape(batch, heads * times, length, width)
    )
