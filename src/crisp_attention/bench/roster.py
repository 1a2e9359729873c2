"""The contenders for each method."""

from collections.abc import Callable

import torch

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import CRISP, REFERENCE, Absent, Contender, UnavailableError, crisp
from crisp_attention.bench.peers import (
    EAGER,
    ENTMAX,
    FLEX,
    X_TRANSFORMERS,
    cannot_rank,
    eager_topk,
    entmax15,
    flex_blocks,
    x_transformers,
)
from crisp_attention.methods.layouts import BlockTopK, Full
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Dense, Entmax, TopK

Build = Callable[[Method, Shape], Contender]


def roster(method: Method, shape: Shape, skip: dict[str, str]) -> tuple[list[Contender], list[Absent]]:
    """Our own contenders and the method's peers, and those that cannot take part, with their reasons.

    skip: reasons known before, by name.
    """
    found, absent = [], []
    ours: dict[str, Build] = {
        CRISP: lambda method, shape: crisp(method),
        REFERENCE: lambda method, shape: crisp(method, "reference"),
    }
    for name, build in (ours | peers(method)).items():
        try:
            contender = build(method, shape)
            if name in skip:
                raise UnavailableError(skip[name])
            found.append(fitting(contender, shape))
        except UnavailableError as reason:
            absent.append(Absent(name, str(reason)))
    return found, absent


def peers(method: Method) -> dict[str, Build]:
    """Other implementations of the method, by name; none for most methods."""
    if method.branch is not None:
        return {}
    match method.layout, method.rule:
        case Full(), TopK():
            return {EAGER: eager_topk, X_TRANSFORMERS: x_transformers, FLEX: cannot_rank}
        case Full(), Entmax():
            return {ENTMAX: entmax15, FLEX: cannot_rank}
        case BlockTopK(), Dense():
            return {FLEX: flex_blocks}
    return {}


def free_bytes(device: str) -> int:
    """Memory that can still be taken on a device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    available: int = psutil.virtual_memory().available
    return available


def fitting(contender: Contender, shape: Shape) -> Contender:
    """The contender, if its matrices of scores fit into the free memory. Raises UnavailableError."""
    needed, free = contender.matrices * shape.matrix_bytes, free_bytes(shape.device)
    if needed > free:
        raise UnavailableError(f"needs about {needed / 2**30:.0f} GiB, only {free / 2**30:.0f} GiB are free")
    return contender
