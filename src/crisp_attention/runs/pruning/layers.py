"""What pruning saves, layer by layer, on the machine that it is asked on."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import linear

from crisp_attention.pruning.compressed import BlockLinear, size_for
from crisp_attention.pruning.matrices import Matrix

ROWS = 512  # of the inputs that are timed
ROUNDS = 15
SUMS = ["weights", "zeros", "left", "dense_ms", "compressed_ms"]


def layer_table(matrices: Sequence[Matrix], rows: int = ROWS) -> pd.DataFrame:
    """One row per layer: its kind, weights and zeros, and how long `rows` inputs take, dense and compressed.

    The columns are name, kind, weights, sparsity, operations (the share that is left of them in whole blocks),
    block_size (0 for a layer that stays dense), and dense_ms and compressed_ms (medians of interleaved rounds in
    milliseconds, NaN for convolutions, which stay dense).
    """
    return pd.DataFrame([_row(each, rows) for each in matrices])


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Weights, sparsity, operations and times of every kind of layer together, and of all, by their names."""
    sums = table.assign(
        zeros=table["weights"] * table["sparsity"], left=table["weights"] * table["operations"]
    )
    found = sums.groupby("kind", sort=False)[SUMS].sum(min_count=1)
    if len(found) > 1:
        found.loc["all"] = sums[SUMS].sum(min_count=1)
    shares = {"sparsity": found["zeros"] / found["weights"], "operations": found["left"] / found["weights"]}
    return found.assign(**shares)[["weights", "sparsity", "operations", "dense_ms", "compressed_ms"]]


@torch.inference_mode()
def _row(matrix: Matrix, rows: int) -> dict[str, Any]:
    weight = matrix.rows(matrix.weight.detach()).contiguous()
    size = size_for(matrix)
    found = {
        "name": matrix.name,
        "kind": matrix.kind,
        "weights": weight.numel(),
        "sparsity": float((weight == 0).float().mean()),
        "operations": 1.0,
        "block_size": size or 0,
        "dense_ms": float("nan"),
        "compressed_ms": float("nan"),
    }
    if matrix.kind == "convolution":
        return found
    states = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    if size is None:
        (found["dense_ms"],) = _times(lambda: linear(states, weight, matrix.bias))
        found["compressed_ms"] = found["dense_ms"]
        return found
    layer = BlockLinear.of(weight, matrix.bias, size)
    found["operations"] = layer.index.numel() * size**2 / weight.numel()
    found["dense_ms"], found["compressed_ms"] = _times(
        lambda: linear(states, weight, matrix.bias), lambda: layer(states)
    )
    return found


def _times(*computations: Callable[[], Tensor]) -> list[float]:
    """Milliseconds of each, by turns."""
    taken: list[list[float]] = [[] for _ in computations]
    for number in range(ROUNDS + 2):
        for each, own in zip(computations, taken, strict=True):
            began = time.perf_counter()
            if each().device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # the first ones compile
                own.append(1000 * (time.perf_counter() - began))
    return [statistics.median(each) for each in taken]
