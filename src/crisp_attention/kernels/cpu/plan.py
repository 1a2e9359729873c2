"""What the row kernels are asked to do, as numbers."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from crisp_attention.methods.ranking import share_count
from crisp_attention.methods.rules import (
    Dense,
    Entmax,
    NofM,
    RandomK,
    Rule,
    Threshold,
    TopK,
    TopKTopP,
    TopP,
)
from crisp_attention.methods.rules.share import ShareRule

# floats in a vector; keys that are laid out together; queries of a tile that goes by columns, and what such a tile
# lists of a strip of keys at most, with room for the vectors behind
LANES, STRIP, QUERIES = 16, 64, 128
LISTED = QUERIES * STRIP + LANES
DENSE, TOPK, TOPP, THRESHOLD, NOFM, ENTMAX15, SPARSEMAX, RANDOM, ALPHA_ENTMAX, TOPK_TOPP = range(10)
# rules that keep a number of keys
COUNTED = (TOPK, RANDOM, TOPK_TOPP)
# the share of a row's keys from which on products with zeros cost less than gathering the others
MUCH = 0.3
# vectors that the searches of LANES rows note; the most keys of an example whose rows are computed so together
STATE, FEW = 9, 192
# decided by more than the scores that a row of blocks has
BY_ROWS = (RANDOM, ALPHA_ENTMAX)
# of what a layout goes by, and what rows draw
NO_TRAITS, CODES, MEMBERS, POINTS = range(4)
TRAITS = {"codes": CODES, "members": MEMBERS, "points": POINTS}
KEYS, BLOCKS = 1, 2


@dataclass(frozen=True)
class Plan:
    """A rule and its numbers; `seed` is that of dropout, `softcap` 0 where there is none.

    `level` is a sparsity, the logarithm of ε, or α, and `mass` that of top-p; `n` and `m` are those of N:M, or top-k's
    least number of keys and its only one, 0 if it has a sparsity.
    """

    rule: int
    level: float
    mass: float
    n: int
    m: int
    causal: bool
    scale: float
    dropout: float
    seed: int
    softcap: float = 0.0
    first_query: int = 0


def code_of(rule: Rule) -> tuple[int, float, float, int, int] | None:
    """The rule's number, level, mass, n and m, None for a rule these kernels do not have.

    A subclass may select or weigh in any other way: it is not the rule.
    """
    if type(rule) in (TopK, RandomK, TopKTopP):
        assert isinstance(rule, ShareRule)
        kind, mass = TOPK if type(rule) is TopK else RANDOM, 1.0
        if isinstance(rule, TopKTopP):
            kind, mass = TOPK_TOPP, rule.mass
        if rule.drops_nothing():
            kind = DENSE
        if rule.sparsity is None:
            return kind, 0.0, mass, 1, rule.keep or 0
        return kind, rule.sparsity, mass, rule.min_keep, 0
    if type(rule) is TopP:
        return (DENSE if rule.mass == 1 else TOPP), 0.0, rule.mass, 1, 1
    if type(rule) is NofM:
        return (NOFM if rule.n < rule.m else DENSE), 0.0, 1.0, rule.n, rule.m
    if (found := _code_and_level(rule)) is None:
        return None
    return *found, 1.0, 1, 1


def _code_and_level(rule: Rule) -> tuple[int, float] | None:
    if type(rule) is Threshold:
        return (THRESHOLD, math.log(rule.epsilon)) if rule.epsilon > 0 else (DENSE, 0.0)
    if type(rule) is Entmax and rule.alpha in ENTMAX:
        return ENTMAX[float(rule.alpha)], 0.0
    if type(rule) is Entmax:
        if isinstance(rule.alpha, str):
            return ALPHA_ENTMAX, 0.0
        return (ALPHA_ENTMAX, float(rule.alpha)) if rule.alpha < 2 else None
    return (DENSE, 0.0) if type(rule) is Dense else None


def keeps_much(plan: Plan) -> bool:
    """Whether what is kept of a row is `MUCH`, by its rule, or may be, which is then asked of each tile."""
    if plan.rule in (TOPK, TOPK_TOPP):
        return plan.m == 0 and 1 - plan.level >= MUCH
    if plan.rule == ALPHA_ENTMAX:
        return plan.dropout == 0
    return plan.rule == DENSE or (plan.rule == NOFM and plan.n >= MUCH * plan.m)


ENTMAX = {1.0: DENSE, 1.5: ENTMAX15, 2.0: SPARSEMAX}


@lru_cache(maxsize=64)
def counts_of(level: float, n: int, m: int, keys: int) -> tuple[Any, Any]:
    """k for every number of keys that a row may see, int32 (keys + 1,), and where to look for the k-th largest.

    By the numbers of a `Plan` for top-k.

    The latter, float32 (keys + 1, 2): in normal scores, by standard deviations above their mean, and
    further for each score too many. Arrays of numpy, which know nothing of torch's modes.
    """
    rule = TopK(keep=m) if m else TopK(level, min_keep=n)
    seen = torch.arange(keys + 1, device="cpu")
    counts = rule.count_of(seen)
    above = ((counts - 0.5) / seen.clamp(min=1)).clamp(1e-6, 1 - 1e-6)
    z = torch.special.ndtri(1 - above.double())
    density = seen.clamp(min=1) * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    hints = torch.stack([z, 1 / density], dim=-1)
    return counts.numpy().astype("int32"), hints.numpy().astype("float32")


@lru_cache(maxsize=64)
def shares_of(sparsity: float, blocks: int) -> Any:
    """How many blocks are kept of every number of them, int32 (blocks + 1,); an array of numpy."""
    return share_count(torch.arange(blocks + 1, device="cpu"), sparsity).numpy().astype("int32")
