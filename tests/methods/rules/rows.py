"""One row of scores at a time, for the tests of the rules."""

import torch
from torch import Tensor

from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule
from tests.cases import selected

NAN, INFINITE = torch.nan, torch.inf


def kept(rule: Rule, scores: list[float], visible: list[bool] | None = None) -> list[int]:
    """The keys that a rule keeps of one row, in order."""
    row = torch.tensor(scores, dtype=torch.float32)[None, None, None]
    seen = torch.ones_like(row, dtype=torch.bool) if visible is None else torch.tensor(visible).expand_as(row)
    chosen = selected(rule, row, seen)
    assert not (chosen & ~seen).any()
    return chosen.flatten().nonzero().flatten().tolist()


def weights(rule: Rule, scores: Tensor, visible: Tensor | None = None, **parameters: Tensor) -> Tensor:
    """The weights that a rule gives to rows of scores (..., S)."""
    keep = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible.expand_as(scores)
    flat = scores.reshape(*[1] * (4 - scores.ndim), *scores.shape) if scores.ndim < 4 else scores
    rows = Rows.of_scores(
        flat, keep.reshape(flat.shape), parameters={f"rule.{n}": v for n, v in parameters.items()}
    )
    return rule.weigh(rows, rule.select(rows, rows.valid)).reshape(scores.shape)
