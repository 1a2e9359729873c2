"""What others compute the same with, each as its documentation or custom has it.

Each function builds a contender for a method and a shape, or raises UnavailableError.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import Contender, UnavailableError
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Entmax, TopK

EAGER, X_TRANSFORMERS, ENTMAX = "eager top-k", "x-transformers", "entmax package"


def eager_topk(method: Method, shape: Shape) -> Contender:
    """All scores, torch.topk, the others at minus infinity, softmax, weighted sum."""
    keep = _keep(method, shape)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        largest, index = scores.topk(keep, dim=-1)
        kept = torch.full_like(scores, -torch.inf).scatter(-1, index, largest)
        return kept.softmax(dim=-1) @ value

    return Contender(EAGER, attend, matrices=5)


def x_transformers(method: Method, shape: Shape) -> Contender:
    """`Attend(sparse_topk=k)` of x-transformers. It keeps all of equal scores, so more than k where some are."""
    attend = installed("x_transformers.attend", "x-transformers").Attend(sparse_topk=_keep(method, shape))
    return Contender(X_TRANSFORMERS, lambda query, key, value: attend(query, key, value)[0], matrices=7)


def entmax15(method: Method, shape: Shape) -> Contender:
    """Eager scores with the exact entmax15 of the package entmax."""
    assert isinstance(method.rule, Entmax)
    if method.rule.alpha != 1.5:
        raise UnavailableError(f"its exact algorithm is for alpha 1.5, not {method.rule.alpha}")
    weigh = installed("entmax", "entmax").entmax15

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return weigh(scores, dim=-1) @ value

    return Contender(ENTMAX, attend, matrices=8)


def installed(module: str, package: str) -> Any:
    """A module of an optional package. Raises UnavailableError if it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name == module.split(".")[0]:
            raise UnavailableError(f"not installed: pip install {package}") from None
        raise UnavailableError(f"{package} cannot be imported: {error}") from None


def _keep(method: Method, shape: Shape) -> int:
    assert isinstance(method.rule, TopK)
    return int(method.rule.count(torch.ones(1, shape.length, dtype=torch.bool)))
