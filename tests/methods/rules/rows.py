"""One row of scores at a time, for the tests of the rules."""

import torch
from torch import Tensor

from crisp_attention.methods.rules import Rule

NAN, INFINITE = torch.nan, torch.inf


def kept(rule: Rule, scores: list[float], visible: list[bool] | None = None) -> list[int]:
    """The keys that a rule keeps of one row, in order."""
    row = torch.tensor(scores, dtype=torch.float32)[None, None, None]
    seen = (
        torch.ones_like(row, dtype=torch.bool) if visible is None else torch.tensor(visible)[None, None, None]
    )
    chosen = rule.select(row, seen, seen, None)
    assert not (chosen & ~seen).any()
    return chosen.flatten().nonzero().flatten().tolist()


def weights(rule: Rule, scores: Tensor, visible: Tensor | None = None) -> Tensor:
    """The weights that a rule gives to rows of scores (..., S)."""
    keep = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible.expand_as(scores)
    return rule.weigh(scores, rule.select(scores, keep, keep, None), {})
