"""α-entmax: argmax over distributions p of p·z + H_α(p), H_α the Tsallis entropy; and the rule made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.part import Parameter, Shape
from crisp_attention.methods.ranking import widest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule

# a bisection step gains one bit, and the interval starts no wider than 1
STEPS = {torch.float32: 30, torch.float64: 60}
# Learned exponents stay inside this interval, and start in its middle.
LOWEST, HIGHEST = 1.01, 1.99
# Adam moves a parameter by about its learning rate, and fine-tuning takes rates near 1e-5: without
# this factor α would stay where it starts.
PACE = 100.0


@dataclass(frozen=True)
class Entmax(Rule):
    """α-entmax in place of softmax: exact zeros where a key does not matter, so the row chooses how many.

    The sparsity follows from the data (arXiv 1905.05702, 1909.00015).

    Parameters
    ----------
    alpha
        1 is the softmax, 2 the sparsemax; 1.5 and 2 are exact, others found by bisection. With "learned" every head has
        its own α between 1.01 and 1.99, started at 1.5 and trained and saved with the model.
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, crisp.Entmax(alpha=2))
    tensor([[[[1., 0., 0., 0.]]]])
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
            return alpha_entmax(scores, keep, self.exponents(rows).to(scores.dtype).reshape(-1, 1, 1))
        # the weights are ever steeper at the edge of the support: there a threshold in float32 is too coarse
        exact = scores if self.alpha <= 2 else scores.to(widest(scores))
        return alpha_entmax(exact, keep, float(self.alpha)).to(scores.dtype)

    def exponents(self, rows: Rows) -> Tensor:
        """The learned α of every head, (H,), in the dtype of the scores."""
        raw = self.parameter(rows, "alpha").to(rows.exact)
        return LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(PACE * raw)

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        return {"alpha": Parameter(torch.zeros(shape.heads))} if self.alpha == "learned" else {}


def alpha_entmax(scores: Tensor, keep: Tensor, alpha: float | Tensor) -> Tensor:
    """α-entmax over the kept entries of each row, α > 1; zeros elsewhere, and in rows that keep nothing.

    `scores` (..., S), `keep` bool; `alpha` a number, or a tensor that broadcasts to rows (..., 1) and
    gets a gradient. Exact, by sorting, for the numbers 1.5 and 2; otherwise by bisection, to the last
    bits of the dtype. Entries outside a row's support do not change the row. First and second derivatives.
    """
    some = keep.any(dim=-1, keepdim=True)
    with torch.no_grad():
        top = torch.where(some, torch.where(keep, scores, -torch.inf).amax(dim=-1, keepdim=True), 0.0)
    z = torch.where(keep, torch.where(keep, scores - top, 0.0) * (alpha - 1), -torch.inf)
    power = 1 / (alpha - 1)
    with torch.no_grad():
        solve = None if isinstance(alpha, Tensor) else SOLVERS.get(alpha)
        tau = solve(z) if solve else _bisect(z, keep, alpha)
        support = keep & ~(z <= tau)  # so that NaN stays, and reaches the output
        inside = torch.where(support, z - tau, 1.0)
        slope = torch.where(support, power * inside ** (power - 1), 0.0).sum(dim=-1, keepdim=True)
    # A Newton step from the solution leaves its value, and gives it its first derivatives: those of the
    # implicit function that τ is of the scores and of α (arXiv 1909.00015, proposition 1). A second one,
    # whose value is 0, gives it its second ones.
    slope = torch.where(some, slope, 1.0)
    tau = tau + torch.where(some, _surplus(z, tau, support, power) / slope, 0.0)
    surplus = _surplus(z, tau, support, power)
    tau = tau + torch.where(some, (surplus - surplus.detach()) / slope, 0.0)
    weights = _powers(z - tau, support, power)
    return weights / torch.where(some, weights.sum(dim=-1, keepdim=True), 1.0)


def _surplus(z: Tensor, tau: Tensor, support: Tensor, power: float | Tensor) -> Tensor:
    return _powers(z - tau, support, power).sum(dim=-1, keepdim=True) - 1


def _powers(excess: Tensor, support: Tensor, power: float | Tensor) -> Tensor:
    inside = torch.where(support, excess, 1.0).clamp(min=torch.finfo(excess.dtype).tiny)
    return torch.where(support, inside**power, 0.0)


def _sparsemax(z: Tensor) -> Tensor:
    falling, length, sums = _prefixes(z)
    tau = (sums - 1) / length
    return _at_support(tau, (tau < falling))


def _entmax15(z: Tensor) -> Tensor:
    falling, length, sums = _prefixes(z)
    mean = sums / length
    mean_square = torch.where(falling.isneginf(), 0.0, falling**2).cumsum(dim=-1) / length
    delta = (1 - length * (mean_square - mean**2)) / length
    tau = mean - delta.clamp(min=0).sqrt()
    return _at_support(tau, tau <= falling)


SOLVERS = {2.0: _sparsemax, 1.5: _entmax15}


def _prefixes(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    falling = z.sort(dim=-1, descending=True).values
    length = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    return falling, length, torch.where(falling.isneginf(), 0.0, falling).cumsum(dim=-1)


def _at_support(tau: Tensor, inside: Tensor) -> Tensor:
    size = inside.sum(dim=-1, keepdim=True).clamp(min=1)
    return tau.gather(-1, size - 1)


def _bisect(z: Tensor, keep: Tensor, alpha: float | Tensor) -> Tensor:
    # the largest z is 0: at -1 it alone weighs 1, and at -n ** (1 - alpha) no key can weigh more than 1/n
    keys = keep.sum(dim=-1, keepdim=True).clamp(min=1).to(z.dtype).expand(*z.shape[:-1], 1)
    low = torch.full_like(keys, -1.0)
    width = 1 - keys ** (1 - alpha)
    for _ in range(STEPS[z.dtype]):
        width = width / 2
        total = ((z - low - width).clamp(min=0) ** (1 / (alpha - 1))).sum(dim=-1, keepdim=True)
        low = torch.where(total >= 1, low + width, low)
    return low
