from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.part import Parameter, Shape
from crisp_attention.methods.ranking import widest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.alpha_entmax import alpha_entmax
from crisp_attention.methods.rules.base import Rule

# Learned exponents stay inside this interval, and start in its middle.
LOWEST, HIGHEST = 1.01, 1.99
# Adam moves a parameter by about its learning rate, and fine-tuning takes rates near 1e-5: without
# this factor α would stay where it starts.
PACE = 100.0


@dataclass(frozen=True)
class Entmax(Rule):
    """α-entmax in place of softmax: exact zeros where a key does not matter, so the row chooses how many.

    `alpha` 1 is the softmax, 2 the sparsemax; 1.5 and 2 are exact, others found by bisection. With
    `alpha="learned"` every head has its own α between 1.01 and 1.99, started at 1.5 and trained and
    saved with the model (arXiv 1905.05702, 1909.00015). The sparsity follows from the data.
    """

    alpha: float | str = 1.5

    name: ClassVar[str] = "entmax"
    zeros_are_dropped: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == "learned":
            return
        if isinstance(self.alpha, str):
            raise ValueError(f'alpha must be a number of at least 1, or "learned", got {self.alpha!r}')
        check_number("alpha", self.alpha, "[1, 10]")
        if 1 < self.alpha < LOWEST:
            raise ValueError(f"alpha must be 1 (the softmax) or at least {LOWEST}, got {self.alpha}")

    def drops_nothing(self, keys: int | None = None) -> bool:
        return self.alpha == 1

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible.expand_as(rows.scores)

    def weigh(self, rows: Rows, keep: Tensor) -> Tensor:
        if self.alpha == 1:
            return super().weigh(rows, keep)
        scores = rows.scores
        if isinstance(self.alpha, str):
            raw = self.parameter(rows, "alpha").to(scores.dtype).reshape(-1, 1, 1)
            return alpha_entmax(scores, keep, LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(PACE * raw))
        # the weights are ever steeper at the edge of the support: there a threshold in float32 is too coarse
        exact = scores if self.alpha <= 2 else scores.to(widest(scores))
        return alpha_entmax(exact, keep, float(self.alpha)).to(scores.dtype)

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        return {"alpha": Parameter(torch.zeros(shape.heads))} if self.alpha == "learned" else {}
