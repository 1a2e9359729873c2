"""The row kernels as operators of torch, for autograd, torch.compile and export."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.plan import LANES, RANDOM, STRIP, TOPK, Plan, counts_of
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.memory import by_rows

# Scores of a tile stay in a core's second cache; tiles that are too few leave threads idle at the end.
TILE_SCORES, LEAST_ROWS, MOST_ROWS, TILES_PER_THREAD = 2**17, 16, 64, 4
# Beyond this many, the keys of a head are packed strip by strip for each tile.
PACKED_NUMBERS = 2**19


def fill(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, bias: Tensor | None, plan: Plan
) -> Job:
    """A job of these tensors; the masks broadcast to (B, H, L, S)."""
    from crisp_attention.kernels.cpu.job import JOB

    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    job = Job(JOB)
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
    job.start(work, threads)


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
    own: Tensor | None,
    rule: int,
    level: float,
    n: int,
    m: int,
    causal: bool,
    scale: float,
    dropout: float,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv) and per row threshold, tie (B, H, L) and norm (B, H, L, 2); all float32, tie int32.

    `own` are the seeds of rows that draw, int32 (B, H, L), or α of each head, float32 (H,).
    """
    plan = Plan(rule, level, n, m, causal, scale, dropout, int(seed))
    results = _outputs(query, value)
    job = fill(query, key, value, valid, bias, plan)
    kernel = "forward"
    if blocks is not None and block_counts is not None:
        restrict(job, blocks, block_counts, lengths, block_size)
        kernel = "blocks_forward"
    if own is not None:
        job.flat("own", own)
    job.strided("out", results[0])
    for name, tensor in zip(PER_ROW, results[1:], strict=True):
        job.flat(name, tensor)
    counts = counts_of(plan.topk(), key.shape[2]) if rule in (TOPK, RANDOM) else ()
    for name, table in zip(("counts", "hints"), counts, strict=False):
        job.table(name, table)
    tiles = -(-query.shape[2] // job["tile"])
    launch(loaded(kernel, "forward"), job, query.shape[0] * query.shape[1] * tiles)
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
    own: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and α from that of the output and what `rows` returned of each row.

    The last is empty where no head has an α of its own.
    """
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
    own_grad = _own_gradient(query, own)
    if own is not None:
        job.flat("own", own)
    if own_grad.numel():
        per_row = own_grad.new_zeros(query.shape[:3], dtype=torch.float64)
        job.flat("own_grad", per_row)
    job.strided("grad", grad)
    job.strided("query_grad", query_grad)
    for name, tensor in zip(PER_ROW, (threshold, tie, norm), strict=True):
        job.flat(name, tensor)
    job.flat("key_grad", key_grad)
    job.flat("value_grad", value_grad)
    job.set(chunks=chunks)
    launch(loaded(kernel, "backward"), job, chunks * groups)
    if own_grad.numel():
        own_grad = per_row.sum(dim=(0, 2)).float()
    if chunks == 1:  # a sum would hold another copy
        return query_grad, key_grad[0], value_grad[0], own_grad
    return query_grad, key_grad.sum(dim=0), value_grad.sum(dim=0), own_grad


def _own_gradient(query: Tensor, own: Tensor | None) -> Tensor:
    return query.new_empty(own.shape[0] if own is not None and own.is_floating_point() else 0)


@rows_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    return *grads, _own_gradient(query, rest[6])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:10], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[10:]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # which torch's checkpointing lets nobody read twice
    query, key, value, own = rows_backward(grad, *saved, *ctx.options)
    learned = own if saved[9] is not None and saved[9].is_floating_point() else None
    return query, key, value, *[None] * 6, learned, *[None] * len(ctx.options)


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
