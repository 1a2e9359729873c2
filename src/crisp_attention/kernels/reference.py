"""The definition of sparse attention in plain PyTorch; every other kernel is tested against it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout

from crisp_attention.methods import Method
from crisp_attention.pairs import valid_queries


@dataclass(frozen=True)
class Observation:
    """What one call computed, for measuring: all (B, H, L, S) but `queries`, (B or 1, H or 1, L)."""

    scores: Tensor
    valid: Tensor
    keep: Tensor
    queries: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: Method,
    *,
    scale: float,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    observe: Callable[[Observation], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sparse attention of (B, H, L, D) queries over (B, G, S, D) keys and (B, G, S, Dv) values.

    `scores = query · key * scale`, capped to ±`softcap` by tanh, plus `bias`; the method's layout
    and rule keep some of the `valid` pairs; softmax over the kept scores (with one further logit
    per head, `sinks` (H,), that takes weight and gives nothing); dropout; weighted sum of values.
    Scores, selection and softmax are float32 or better; the gradient flows through kept scores
    only; a row that keeps nothing gives zeros. Returns output (B, H, L, Dv) and weights (B, H, L, S).
    """
    with torch.autocast(query.device.type, enabled=False):
        exact = torch.promote_types(query.dtype, torch.float32)
        shared = query.shape[1] // key.shape[1]
        key, value = _repeat_heads(key, shared), _repeat_heads(value, shared)
        scores = torch.matmul(query.to(exact), key.to(exact).transpose(2, 3)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if bias is not None:
            scores = scores + bias.to(exact)
        if valid is None:
            valid = torch.ones(1, 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
        valid = valid.expand(*valid.shape[:-2], *scores.shape[-2:])
        with torch.no_grad():
            keep = method.rule.keep(scores, method.layout.visible(valid), valid, seed)
        if observe is not None:
            with torch.no_grad():
                observe(Observation(scores.detach(), valid.expand_as(scores), keep, valid_queries(valid)))
        weights = _softmax(scores, keep, sinks)
        weights = apply_dropout(weights, p=dropout).to(value.dtype)
        return torch.matmul(weights, value), weights


def _repeat_heads(states: Tensor, times: int) -> Tensor:
    if times == 1:
        return states
    batch, heads, length, width = states.shape
    return (
        states[:, :, None]
        .expand(batch, heads, times, length, width)
        .reshape(batch, heads * times, length, width)
    )


def _softmax(scores: Tensor, keep: Tensor, sinks: Tensor | None) -> Tensor:
    # Adding 0 or finfo.min, and not filling with -inf: a row that keeps nothing must stay finite,
    # forward and backward, and on CPUs arithmetic is several times as fast as masked filling.
    dropped = keep.to(scores.dtype).sub_(1).mul_(-torch.finfo(scores.dtype).min)
    logits = scores + dropped
    if sinks is None:
        weights = logits.softmax(dim=-1)
    else:
        sink = sinks.to(logits.dtype).reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
    return weights * (keep.sum(dim=-1, keepdim=True, dtype=torch.int32) > 0).to(weights.dtype)
