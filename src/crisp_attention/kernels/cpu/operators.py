"""The row kernels as operators of torch, for autograd, torch.compile and export."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.plan import (
    ALPHA_ENTMAX,
    COUNTED,
    FEW,
    LANES,
    LISTED,
    QUERIES,
    RANDOM,
    STATE,
    STRIP,
    THRESHOLD,
    TOPK,
    TOPK_TOPP,
    TOPP,
    Plan,
    counts_of,
    keeps_much,
)
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.memory import by_rows

# Scores of a tile stay in a core's second cache; tiles that are too few leave threads idle at the end. MOST_ROWS are
# STRIP at most, for which transposed tiles have room.
TILE_SCORES, LEAST_ROWS, MOST_ROWS, TILES_PER_THREAD = 2**17, 16, 64, 4
# Numbers of a head's values that a core's first cache does not hold; scores and rows, at most, of a tile that is worth
# reading them by chunks for, each of LEAST_CHUNK keys at least
LONG, LONG_SCORES, LONG_ROWS, LEAST_CHUNK = 2**15, 3 * 2**18, 48, 64
# Numbers of a chunk, and PACKED_NUMBERS next to such a tile: in the forward pass, and in the backward pass, which has
# chunks of keys, values and both their gradients
CHUNK, CHUNK_BACKWARD = (2**14, 2**20), (2**13, 2**18)
# Keys of a block of the backward pass by columns
COLUMNS = 512
# For fewer rows that share their keys, packing these takes longer than the products
UNPACKED = 3
# Multiplications: for fewer, another thread takes longer to start than to compute them
WORK = 2**17
# Beyond this many, the keys of a head are packed strip by strip for each tile.
PACKED_NUMBERS = 2**19


def fill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    span: Tensor | None,
    plan: Plan,
) -> Job:
    """A job of these tensors; the masks broadcast to (B, H, L, S), `sinks` are (H,), `span` (B, 2)."""
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
    job.set(batch=batch, heads=heads, groups=key.shape[1], queries=queries, keys=keys)
    job.set(unpacked=queries * heads <= UNPACKED * key.shape[1])
    job.set(full=keeps_much(plan) and not job["unpacked"])
    job.set(width=width, value_width=value.shape[3], chunks=1)
    _divide(job, TILE_SCORES, MOST_ROWS, PACKED_NUMBERS)
    job.set(rule=plan.rule, level=plan.level, mass=plan.mass, n=plan.n, m=plan.m)
    job.set(causal=plan.causal, first_query=plan.first_query)
    job.set(scale=plan.scale, softcap=plan.softcap, dropout=plan.dropout, seed=plan.seed)
    if sinks is not None:
        job.flat("sinks", sinks)
    if span is not None:
        job.flat("spans", span.int())
    return job


def _divide(job: Job, scores: int, rows: int, packed: int) -> None:
    """Enter the rows of a tile, of so many scores and rows at most, and whether heads up to a size are packed whole."""
    fair = job["batch"] * job["heads"] * job["queries"] // (TILES_PER_THREAD * torch.get_num_threads())
    tile = min(job["queries"], max(LEAST_ROWS, min(rows, scores // job["keys"], fair)))
    job.set(tile=tile, whole=job["keys"] * job["width"] <= packed)


def chunk(job: Job, plan: Plan, numbers: int, packed: int) -> None:
    """Let what is kept of long rows be listed in place of their scores, and multiplied by chunks of so many numbers."""
    width = max(job["width"], job["value_width"])
    listed = not job["full"] and not job["unpacked"] and plan.rule not in (RANDOM, ALPHA_ENTMAX)
    if listed and job["keys"] >= width and job["keys"] * width > LONG:
        job.set(chunk_keys=max(LEAST_CHUNK, numbers // width))
        _divide(job, LONG_SCORES, LONG_ROWS, packed)


def launch(work: Callable[..., Any], job: Job, items: int, size: int) -> None:
    """Run a compiled function on the job, on at most as many threads as there are items, each with `size` numbers."""
    multiplications = job["batch"] * job["heads"] * job["queries"] * job["keys"] * job["width"]
    threads = max(1, min(torch.get_num_threads(), items, 1 + multiplications // WORK))
    job.flat("scratch", torch.empty(threads, size, dtype=torch.float32, device="cpu"))
    job.set(scratch_size=size)
    job.start(work, threads)


def _room(job: Job) -> int:
    """Numbers that a thread of the row kernels needs."""
    columns = -(-job["keys"] // LANES) * LANES
    packed = -(-(job["keys"] if job["whole"] else STRIP) // STRIP) * STRIP
    room = 5 * (columns + LANES) + STATE * LANES + job["tile"] * (columns + 2) + LANES + packed * job["width"]
    room += STRIP * (job["width"] + FEW) * (job["rule"] == TOPK)
    return room + job["full"] * (job["tile"] * columns + packed * job["value_width"])


def by_columns(plan: Plan, *added: Tensor | None) -> bool:
    """Whether the backward pass may go key by key: thresholds tell what was kept, and scores are plain products.

    `added` are the mask, the bias and the sinks. Of rows that keep much, all products are taken.
    """
    told = plan.rule in (TOPK, TOPP, TOPK_TOPP, THRESHOLD) and not keeps_much(plan)
    return told and not plan.softcap and all(each is None for each in added)


def _room_of_columns(job: Job) -> int:
    """Numbers that a thread of the backward pass by columns needs."""
    widths = job["width"] + job["value_width"]
    lists = 5 * LISTED + STRIP + 6 * QUERIES
    return lists + QUERIES * (STRIP + job["width"] + widths) + job["chunk_keys"] * widths


# what the forward pass notes of every row for the backward pass
PER_ROW = ("threshold", "tie", "norm")


def prepare(job: Job, plan: Plan, results: tuple[Tensor, ...]) -> None:
    """Enter where `outputs` are, and the tables of the rule, if it has some."""
    job.strided("out", results[0])
    for name, tensor in zip(PER_ROW, results[1:], strict=True):
        job.flat(name, tensor)
    tables = counts_of(plan.level, plan.n, plan.m, job["keys"]) if plan.rule in COUNTED else ()
    for name, table in zip(("counts", "hints"), tables, strict=False):
        job.table(name, table)


def rows_now(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    span: Tensor | None,
    seed: Tensor,
    own: Tensor | None,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    causal: bool,
    first_query: int,
    scale: float,
    softcap: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv) and per row threshold, tie (B, H, L) and norm (B, H, L, 2); all float32, tie int32.

    `own` are the seeds of rows that draw, int32 (B, H, L), or α of each head, float32 (H,).
    """
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), softcap, first_query)
    results = outputs(query, value)
    job = fill(query, key, value, valid, bias, sinks, span, plan)
    chunk(job, plan, *CHUNK)
    if own is not None:
        job.flat("own", own)
    prepare(job, plan, results)
    tiles = -(-query.shape[2] // job["tile"])
    launch(loaded("forward", "forward"), job, query.shape[0] * query.shape[1] * tiles, _room(job))
    return results


rows = torch.library.custom_op("crisp::rows", rows_now, mutates_args=(), device_types="cpu")


@rows.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(query, value)


@torch.library.custom_op("crisp::rows_backward", mutates_args=(), device_types="cpu")
def rows_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    span: Tensor | None,
    seed: Tensor,
    own: Tensor | None,
    output: Tensor | None,
    threshold: Tensor,
    tie: Tensor,
    norm: Tensor,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    causal: bool,
    first_query: int,
    scale: float,
    softcap: float,
    dropout: float,
    learns_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, sinks and α from that of the output and what `rows` returned of each row.

    The last three are empty where there is none of it, and for a bias that does not learn. `output` is that of `rows`,
    for calls that may go `by_columns`; they do where that is work for all threads.
    """
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), softcap, first_query)
    job = fill(query, key, value, valid, bias, sinks, span, plan)
    items = -(-query.shape[2] // QUERIES) * query.shape[0] * key.shape[1]
    shared = items >= torch.get_num_threads() and not job["unpacked"]
    if output is not None and shared and value.shape[3] % LANES == 0:
        job.strided("out", output)
        job.set(tile=QUERIES, chunk_keys=min(COLUMNS, key.shape[2]))
        states, none = (grad, query, key, value), [query.new_empty(0) for _ in range(3)]
        found = gradients("columns", job, states, (threshold, tie, norm), _room_of_columns(job))
        return (*found, none[0], none[1], none[2])
    # these need the scores that lists are put over
    if not (learns_bias or sinks is not None or softcap or dropout):
        chunk(job, plan, *CHUNK_BACKWARD)
    own_grad = _own_gradient(query, own)
    if own is not None:
        job.flat("own", own)
    if own_grad.numel():
        per_row = own_grad.new_zeros(query.shape[:3], dtype=torch.float64)
        job.flat("own_grad", per_row)
    # as autograd has it before it sums: threads that share a bias do not wait for each other
    whole = *query.shape[:3], key.shape[2]
    bias_grad = query.new_zeros(whole if learns_bias else 0)
    sinks_grad = query.new_zeros(0 if sinks is None else (_chunks(job), *query.shape[:2]))
    if learns_bias:
        job.strided("bias_grad", bias_grad)
    if sinks is not None:
        job.flat("sinks_grad", sinks_grad)
    found = gradients("backward", job, (grad, query, key, value), (threshold, tie, norm), _room(job))
    if own_grad.numel():
        own_grad = per_row.sum(dim=(0, 2)).float()
    more = (
        bias_grad.sum_to_size(bias.shape) if bias is not None and learns_bias else bias_grad,
        sinks_grad if sinks is None else sinks_grad.sum(dim=(0, 1)),
        own_grad,
    )
    return *found, *more


def gradients(
    kernel: str, job: Job, states: tuple[Tensor, ...], per_row: tuple[Tensor, ...], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given that of the output; the kernel's threads need `size` numbers each.

    All but that by columns add to zeros.
    """
    grad, query, key, value = states
    chunks = _chunks(job)
    query_grad = query.new_empty(query.shape)
    new = query.new_empty if kernel == "columns" else query.new_zeros
    key_grad, value_grad = (new(chunks, *states.shape) for states in (key, value))
    job.strided("grad", grad)
    job.strided("query_grad", query_grad)
    for name, tensor in zip(PER_ROW, per_row, strict=True):
        job.flat(name, tensor)
    job.flat("key_grad", key_grad)
    job.flat("value_grad", value_grad)
    job.set(chunks=chunks)
    launch(loaded(kernel, "backward"), job, chunks * job["batch"] * job["groups"], size)
    if chunks == 1:  # a sum would hold another copy
        return query_grad, key_grad[0], value_grad[0]
    return query_grad, key_grad.sum(dim=0), value_grad.sum(dim=0)


def _chunks(job: Job) -> int:
    """As few partial sums over keys as give every thread work."""
    groups = job["batch"] * job["groups"]
    return min(-(-job["queries"] // job["tile"]), -(-torch.get_num_threads() // groups))


def _own_gradient(query: Tensor, own: Tensor | None) -> Tensor:
    return query.new_empty(own.shape[0] if own is not None and own.is_floating_point() else 0)


@rows_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    span: Tensor | None,
    seed: Tensor,
    own: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    learned = bias.shape if bias is not None and rest[-1] else (0,)
    shapes = query.shape, key.shape, value.shape, learned, (0,) if sinks is None else sinks.shape
    return *(query.new_empty(shape) for shape in shapes), _own_gradient(query, own)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[9:]
    rule, level, mass, n, m, causal, first_query, scale, softcap, dropout = ctx.options
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, 0, softcap, first_query)
    kept = output[0] if by_columns(plan, *inputs[3:6]) else None
    ctx.save_for_backward(*inputs[:9], kept, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    learns_bias, saved = ctx.needs_input_grad[4], ctx.saved_tensors  # which may be read once
    *grads, bias, sinks, own = rows_backward(grad, *saved, *ctx.options, learns_bias)
    learned = own if saved[8] is not None and saved[8].is_floating_point() else None
    more = (None, bias if learns_bias else None, None if saved[5] is None else sinks, None, None, learned)
    return *grads, *more, *[None] * len(ctx.options)


rows.register_autograd(_gradients, setup_context=_remember)
rows_backward.register_autograd(refuse_second("cpu"))


def outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the output of the forward pass and what it notes of every row."""
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
