"""What the row kernels are asked to do, as numbers."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from crisp_attention.rules import Dense, Entmax, NofM, Rule, Threshold, TopK, TopP

DENSE, TOPK, TOPP, THRESHOLD, NOFM, ENTMAX15, SPARSEMAX = range(7)


@dataclass(frozen=True)
class Plan:
    """A rule and its numbers: `level` is a mass, or the logarithm of ε; `seed` is that of dropout."""

    rule: int
    level: float
    n: int
    m: int
    causal: bool
    scale: float
    dropout: float
    seed: int


def code_of(rule: Rule) -> tuple[int, float, int, int] | None:
    """The rule's number, level, n and m, None for a rule these kernels do not have."""
    if isinstance(rule, TopK):
        return (DENSE if rule.sparsity == 0 else TOPK), 0.0, 1, 1
    if isinstance(rule, TopP):
        return (DENSE if rule.mass == 1 else TOPP), rule.mass, 1, 1
    if isinstance(rule, Threshold):
        return (THRESHOLD, math.log(rule.epsilon), 1, 1) if rule.epsilon > 0 else (DENSE, 0.0, 1, 1)
    if isinstance(rule, NofM):
        return NOFM, 0.0, rule.n, rule.m
    if isinstance(rule, Entmax) and rule.alpha in ENTMAX:
        return ENTMAX[float(rule.alpha)], 0.0, 1, 1
    return (DENSE, 0.0, 1, 1) if isinstance(rule, Dense) else None


ENTMAX = {1.0: DENSE, 1.5: ENTMAX15, 2.0: SPARSEMAX}


@lru_cache(maxsize=64)
def counts_of(rule: Rule, keys: int) -> tuple[Tensor, Tensor]:
    """k for every number of keys that a row may see, int32 (keys + 1,), and where to look for the k-th largest.

    The latter, float32 (keys + 1, 2): in normal scores, by standard deviations above their mean, and
    further for each score too many.
    """
    if not isinstance(rule, TopK):
        return torch.zeros(0, dtype=torch.int32), torch.zeros(0, 2)
    seen = torch.arange(keys + 1)
    counts = rule.count_of(seen)
    above = ((counts - 0.5) / seen.clamp(min=1)).clamp(1e-6, 1 - 1e-6)
    z = torch.special.ndtri(1 - above.double())
    density = seen.clamp(min=1) * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return counts.to(torch.int32), torch.stack([z, 1 / density], dim=-1).float()
