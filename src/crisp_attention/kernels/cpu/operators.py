"""The row kernels as operators of torch, for autograd, torch.compile and export; their compiled symbols and threads."""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crisp_attention.kernels.cpu.plan import LANES, STRIP, TOPK, Plan, counts_of
from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.memory import by_rows

PATIENCE = 4.0  # seconds; from the cache on disk, kernels are there in less
Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


@cache
def loaded(name: str) -> Any:
    """The kernel `name`: "forward", "backward", "blocks_forward" or "blocks_backward"."""
    text = "compiling a kernel for this CPU (%s): some ten seconds, once on this machine"
    notice = Timer(PATIENCE, logging.getLogger(__name__).warning, (text, name))
    notice.daemon = True
    notice.start()
    try:
        module = import_module(f"crisp_attention.kernels.cpu.{name}")
    finally:
        notice.cancel()
    return getattr(module, name.removeprefix("blocks_"))


def run(work: int, job: int, threads: int) -> None:
    """Call the function at address `work` with `job` from each of `threads` threads, and wait."""
    if threads == 1:
        Work(work)(job)
    elif _forked:
        # A child of fork has none of its parent's threads, and OpenMP waits for them for ever: only in a
        # thread that is new does it start others.
        _in_new_thread(lambda: _team()(work, job, threads))
    else:
        _team()(work, job, threads)


@cache
def _team() -> Callable[[int, int, int], None]:
    libraries = [*Path(torch.__file__).parent.glob("lib/libgomp*.so*")] if os.name == "posix" else []
    libraries += [*Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*.so*")]
    for library in libraries:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return lambda work, job, threads: parallel(work, job, threads, 0)
    return _python_threads


def _python_threads(work: int, job: int, threads: int) -> None:
    others = [Thread(target=Work(work), args=(job,)) for _ in range(threads - 1)]
    for other in others:
        other.start()
    Work(work)(job)
    for other in others:
        other.join()


def _in_new_thread(work: Callable[[], None]) -> None:
    thread = Thread(target=work)
    thread.start()
    thread.join()


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


# Scores of a tile stay in a core's second cache; tiles that are too few leave threads idle at the end.
TILE_SCORES, LEAST_ROWS, MOST_ROWS, TILES_PER_THREAD = 2**17, 16, 64, 4
# Beyond this many, the keys of a head are packed strip by strip for each tile.
PACKED_NUMBERS = 2**19


class Job:
    """The record of a call that its threads read, and the tensors that the addresses in it point to.

    Every address comes from here, of a tensor in the layout that compiled code expects: inputs that have
    another are copied, and everything is held until the job is done.
    """

    def __init__(self) -> None:
        from crisp_attention.kernels.cpu.job import JOB

        self.record = np.zeros(1, JOB)
        self._held: list[Tensor | np.ndarray] = []

    def __getitem__(self, name: str) -> int:
        return int(self.record[name][0])

    def set(self, **numbers: float) -> None:
        """Enter numbers by name."""
        for name, number in numbers.items():
            self.record[name] = number

    def strided(self, name: str, tensor: Tensor) -> None:
        """Enter a tensor (B, H, L, ·) by its address and the strides of all but its last dimension."""
        rows = by_rows(tensor)
        self._held.append(rows)
        self.record[name] = rows.data_ptr()
        for part, stride in zip(("batch", "head", "row"), rows.stride(), strict=False):
            self.record[f"{name}_{part}"] = stride

    def flat(self, name: str, tensor: Tensor) -> None:
        """Enter the address of a tensor that is read from end to end."""
        dense = tensor.contiguous()
        self._held.append(dense)
        self.record[name] = dense.data_ptr()

    def table(self, name: str, array: np.ndarray) -> None:
        """Enter the address of a numpy array."""
        self._held.append(array)
        self.record[name] = array.ctypes.data


def fill(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, bias: Tensor | None, plan: Plan
) -> Job:
    """A job of these tensors; the masks broadcast to (B, H, L, S)."""
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    job = Job()
    for name, states in (("query", query), ("key", key), ("value", value)):
        job.strided(name, states)
    for name, mask in (("valid", valid), ("bias", bias)):
        if mask is not None:
            # rows are laid out before they are repeated: a mask for all queries stays one row
            whole = by_rows(mask.expand(*mask.shape[:-1], keys))
            job.strided(name, whole.expand(batch, heads, queries, keys))
    fair = batch * heads * queries // (TILES_PER_THREAD * torch.get_num_threads())
    tile = min(queries, max(LEAST_ROWS, min(MOST_ROWS, TILE_SCORES // keys, fair)))
    job.set(batch=batch, heads=heads, groups=key.shape[1], queries=queries, keys=keys)
    job.set(
        width=width, value_width=value.shape[3], tile=tile, chunks=1, whole=keys * width <= PACKED_NUMBERS
    )
    job.set(rule=plan.rule, level=plan.level, n=plan.n, m=plan.m, causal=plan.causal)
    job.set(scale=plan.scale, dropout=plan.dropout, seed=plan.seed)
    return job


def restrict(job: Job, blocks: Tensor, block_counts: Tensor, lengths: Tensor | None, block_size: int) -> None:
    """Enter which blocks of keys (B, H, n, n) each block of queries sees, how many, and real tokens (B,)."""
    blocks = blocks[..., : max(1, int(block_counts.max()))]
    job.flat("blocks", blocks)
    job.flat("block_counts", block_counts)
    job.set(most_blocks=blocks.shape[-1], block_size=block_size, tile=block_size)
    if lengths is not None:
        job.flat("lengths", lengths)


def launch(work: Callable[..., Any], job: Job, items: int) -> None:
    """Run a compiled function on the job, on at most as many threads as there are items."""
    threads = max(1, min(torch.get_num_threads(), items))
    if block := job["block_size"]:
        columns, tiles = job["most_blocks"] * block, 2
        packed = -(-job["keys"] // block) * block * (job["width"] + job["value_width"])
    else:
        columns, tiles = -(-job["keys"] // LANES) * LANES, 1
        packed = -(-(job["keys"] if job["whole"] else STRIP) // STRIP) * STRIP * job["width"]
    size = 4 * (columns + LANES) + tiles * job["tile"] * columns + packed
    job.flat("scratch", torch.empty(threads, size, dtype=torch.float32, device="cpu"))
    job.set(scratch_size=size)
    run(work.address, job.record.ctypes.data, threads)  # type: ignore[attr-defined]


# what the forward pass notes of every row for the backward pass
PER_ROW = ("threshold", "tie", "norm")


@torch.library.custom_op("crisp::rows", mutates_args=(), device_types="cpu")
def rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    blocks: Tensor | None,
    block_counts: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    rule: int,
    level: float,
    n: int,
    m: int,
    causal: bool,
    scale: float,
    dropout: float,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv) and per row threshold, tie (B, H, L) and norm (B, H, L, 2); all float32, tie int32."""
    plan = Plan(rule, level, n, m, causal, scale, dropout, int(seed))
    results = _outputs(query, value)
    job = fill(query, key, value, valid, bias, plan)
    kernel = "forward"
    if blocks is not None and block_counts is not None:
        restrict(job, blocks, block_counts, lengths, block_size)
        kernel = "blocks_forward"
    job.strided("out", results[0])
    for name, tensor in zip(PER_ROW, results[1:], strict=True):
        job.flat(name, tensor)
    counts = counts_of(plan.topk(), key.shape[2]) if rule == TOPK else ()
    for name, table in zip(("counts", "hints"), counts, strict=False):
        job.table(name, table)
    tiles = -(-query.shape[2] // job["tile"])
    launch(loaded(kernel), job, query.shape[0] * query.shape[1] * tiles)
    return results


@rows.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(query, value)


@torch.library.custom_op("crisp::rows_backward", mutates_args=(), device_types="cpu")
def rows_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    blocks: Tensor | None,
    block_counts: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    threshold: Tensor,
    tie: Tensor,
    norm: Tensor,
    rule: int,
    level: float,
    n: int,
    m: int,
    causal: bool,
    scale: float,
    dropout: float,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output and what `rows` returned of each row."""
    plan = Plan(rule, level, n, m, causal, scale, dropout, int(seed))
    job = fill(query, key, value, valid, bias, plan)
    kernel = "backward"
    if blocks is not None and block_counts is not None:
        restrict(job, blocks, block_counts, lengths, block_size)
        kernel = "blocks_backward"
    # as few partial sums over keys as give every thread work
    groups = query.shape[0] * key.shape[1]
    tiles = -(-query.shape[2] // job["tile"])
    chunks = min(tiles, -(-torch.get_num_threads() // groups))
    query_grad = query.new_empty(query.shape)
    key_grad, value_grad = (query.new_zeros(chunks, *states.shape) for states in (key, value))
    job.strided("grad", grad)
    job.strided("query_grad", query_grad)
    for name, tensor in zip(PER_ROW, (threshold, tie, norm), strict=True):
        job.flat(name, tensor)
    job.flat("key_grad", key_grad)
    job.flat("value_grad", value_grad)
    job.set(chunks=chunks)
    launch(loaded(kernel), job, chunks * groups)
    if chunks == 1:  # a sum would hold another copy
        return query_grad, key_grad[0], value_grad[0]
    return query_grad, key_grad.sum(dim=0), value_grad.sum(dim=0)


@rows_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[9:]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = rows_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * (6 + len(ctx.options))


rows.register_autograd(_gradients, setup_context=_remember)
rows_backward.register_autograd(refuse_second("cpu"))


def _outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    # laid out as models want it next: (B, L, H, Dv)
    output = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    per_row = query.new_zeros(batch, heads, queries)  # some rows and rules leave some of it as it is
    return (
        output,
        per_row,
        torch.zeros_like(per_row, dtype=torch.int32),
        query.new_zeros(batch, heads, queries, 2),
    )
