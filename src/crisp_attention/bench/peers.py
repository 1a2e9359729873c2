"""Other implementations of the methods: eager ones, packages, and torch's FlexAttention with precomputed blocks."""

from functools import cache
from importlib import import_module
from shutil import which
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import Contender, UnavailableError
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method
from crisp_attention.methods.ranking import share_count
from crisp_attention.methods.rules import Entmax, TopK

EAGER, X_TRANSFORMERS, ENTMAX = "eager top-k", "x-transformers", "entmax package"
FLEX = "FlexAttention"


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
    """`Attend(sparse_topk=k)` of x-transformers. It keeps all ties, so sometimes more than k."""
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


def cannot_rank(method: Method, shape: Shape) -> Contender:
    """FlexAttention for a rule on rows: raises UnavailableError."""
    raise UnavailableError("a score_mod sees one score at a time and cannot rank a row")


def flex_blocks(method: Method, shape: Shape) -> Contender:
    """The choice of blocks by plain torch, a BlockMask made of their indices, compiled FlexAttention."""
    layout = method.layout
    assert isinstance(layout, BlockTopK)
    size, blocks = layout.block_size, shape.length // layout.block_size
    if shape.device == "cpu" and not (which("g++") or which("clang++")):
        raise UnavailableError("on the CPU torch.compile needs a C++ compiler (g++ or clang++); found none")
    if shape.length % size:
        raise UnavailableError(f"{shape.length} tokens are not a whole number of blocks of {size}")
    if (layout.sink_blocks, layout.local_blocks) != (0, 1):
        raise UnavailableError(
            "compared only without sink blocks and with no local block but the query's own"
        )
    keep = int(share_count(torch.tensor([blocks]), layout.sparsity))
    own = torch.eye(blocks, dtype=torch.bool, device=shape.device)
    options: Any = {"BLOCK_M": min(size, 128), "BLOCK_N": min(size, 128)} if shape.device == "cuda" else None

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.requires_grad and shape.device == "cpu":
            raise UnavailableError("has no backward pass on the CPU")
        with torch.no_grad():
            means = [each.unflatten(2, (blocks, size)).mean(dim=3) for each in (query, key)]
            ranked = (means[0] @ means[1].transpose(-1, -2)).masked_fill(own, torch.inf)
            index = ranked.argsort(dim=-1, descending=True).to(torch.int32)
            number = torch.full_like(index[..., 0], keep)
            mask = BlockMask.from_kv_blocks(
                torch.zeros_like(number),
                torch.zeros_like(index),  # torch 2.13 does not compile where one tensor is both indices
                number,
                index,
                BLOCK_SIZE=size,
                compute_q_blocks=query.requires_grad,
            )
        output: Any = _compiled()(query, key, value, block_mask=mask, kernel_options=options)
        return output

    return Contender(FLEX, attend)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
