"""Fill in a job and run it: shapes, strides, addresses, scratch memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crisp_attention.kernels.cpu.plan import LANES, STRIP, Plan
from crisp_attention.kernels.cpu.threads import run

# Scores of a tile stay in a core's second cache; tiles that are too few leave threads idle at the end.
TILE_SCORES, LEAST_ROWS, MOST_ROWS, TILES_PER_THREAD = 2**17, 16, 64, 4
# Beyond so many, the keys of a head are packed strip by strip for each tile.
PACKED_NUMBERS = 2**19


def fill(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, bias: Tensor | None, plan: Plan
) -> Any:
    """A job of these tensors, each with contiguous rows; masks have all four dimensions."""
    from crisp_attention.kernels.cpu.job import JOB

    batch, heads, queries, width = query.shape
    job = np.zeros(1, JOB)
    for name, tensor in (("query", query), ("key", key), ("value", value), ("valid", valid), ("bias", bias)):
        if tensor is not None:
            point(job, name, tensor)
    sizes = {"batch": batch, "heads": heads, "groups": key.shape[1], "queries": queries, "keys": key.shape[2]}
    fair = batch * heads * queries // (TILES_PER_THREAD * torch.get_num_threads())
    tile = min(queries, max(LEAST_ROWS, min(MOST_ROWS, TILE_SCORES // key.shape[2], fair)))
    sizes |= {"width": width, "value_width": value.shape[3], "tile": tile, "chunks": 1}
    sizes["whole"] = key.shape[2] * width <= PACKED_NUMBERS
    options = {"rule": plan.rule, "level": plan.level, "n": plan.n, "m": plan.m, "causal": plan.causal}
    options |= {"scale": plan.scale, "dropout": plan.dropout, "seed": plan.seed}
    for name, number in (sizes | options).items():
        job[name] = number
    return job


def restrict(
    job: Any, blocks: Tensor, block_counts: Tensor, lengths: Tensor | None, block_size: int
) -> Tensor:
    """Enter which blocks of keys (B, H, n, n) each block of queries sees, how many, and real tokens (B,).

    Returns the part of `blocks` that the job points to, to be held while it runs.
    """
    blocks = blocks[..., : max(1, int(block_counts.max()))].contiguous()
    job["blocks"], job["block_counts"] = blocks.data_ptr(), block_counts.data_ptr()
    job["most_blocks"], job["block_size"], job["tile"] = blocks.shape[-1], block_size, block_size
    if lengths is not None:
        job["lengths"] = lengths.data_ptr()
    return blocks


def point(job: Any, name: str, tensor: Tensor) -> None:
    """Enter a strided tensor's address and strides."""
    job[name] = tensor.data_ptr()
    job[name + "_batch"], job[name + "_head"], job[name + "_row"] = tensor.stride()[:3]


def launch(work: Callable[..., Any], job: Any, items: int) -> None:
    """Run a compiled function on the job, on at most as many threads as there are items."""
    threads = max(1, min(torch.get_num_threads(), items))
    number = {name: int(job[name][0]) for name in ("tile", "keys", "width", "value_width", "most_blocks")}
    if block := int(job["block_size"][0]):
        columns, tiles = number["most_blocks"] * block, 2
        packed = -(-number["keys"] // block) * block * (number["width"] + number["value_width"])
    else:
        columns, tiles = -(-number["keys"] // LANES) * LANES, 1
        packed = -(-(number["keys"] if job["whole"][0] else STRIP) // STRIP) * STRIP * number["width"]
    size = 4 * (columns + LANES) + tiles * number["tile"] * columns + packed
    scratch = torch.empty(threads, size, dtype=torch.float32, device="cpu")
    job["scratch"], job["scratch_size"] = scratch.data_ptr(), size
    run(work.address, job.ctypes.data, threads)  # type: ignore[attr-defined]
