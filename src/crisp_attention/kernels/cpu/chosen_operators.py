"""The kernel of queries that choose blocks for themselves, as an operator of torch."""

from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.block_operators import restrict
from crisp_attention.kernels.cpu.operators import fill, gradients, launch, outputs, prepare
from crisp_attention.kernels.cpu.plan import LANES, Plan, shares_of
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second

# scores of a tile, which should stay in a core's second cache, and its most rows
TILE_SCORES, MOST_ROWS = 2**17, 256


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    seed: Tensor,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    causal: bool,
    first_query: int,
    scale: float,
    dropout: float,
    block_size: int,
    sparsity: float,
    sink_blocks: int,
    local_blocks: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `crisp::blocks` gives, and per row which blocks it chose, as bits (B, H, L, n / 32), and how many, int32."""
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    results, choice = outputs(query, value), _choices(query, key, block_size)
    job = fill(query, key, value, None, None, None, spans, plan)
    job.set(sink_blocks=sink_blocks, local_blocks=max(1, local_blocks))
    restrict(job, None, None, block_size, ())
    _choose(job, choice, sparsity)
    _divide(job, choice)
    prepare(job, plan, results)
    tiles = -(-query.shape[2] // job["tile"])
    packed = job["blocks_of_keys"] * block_size * query.shape[3]
    launch(
        loaded("chosen_forward", "forward"),
        job,
        query.shape[0] * query.shape[1] * tiles,
        _room(job, 1) + packed,
    )
    return *results, *choice


def step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    seed: Tensor,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    causal: bool,
    first_query: int,
    scale: float,
    dropout: float,
    block_size: int,
    sparsity: float,
    sink_blocks: int,
    local_blocks: int,
) -> tuple[Tensor, ...]:
    """What `attend` gives of a few queries, without what the gradients need."""
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    results = outputs(query, value)
    job = fill(query, key, value, None, None, None, spans, plan)
    blocks = -(-job["keys"] // block_size)
    words = -(-blocks // 32)
    job.set(block_size=block_size, sink_blocks=sink_blocks, local_blocks=max(1, local_blocks), words=words)
    job.table("shares", shares_of(sparsity, blocks))
    prepare(job, plan, results)
    columns, ranks = (-(-each // LANES) * LANES + LANES for each in (job["keys"], blocks))
    size = 6 * columns + ranks + words
    launch(loaded("chosen_step", "step"), job, query.shape[:3].numel(), size)
    return results


chosen = torch.library.custom_op("crisp::chosen", mutates_args=(), device_types="cpu")(attend)


@chosen.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *outputs(query, value), *_choices(query, key, rest[11])


@torch.library.custom_op("crisp::chosen_backward", mutates_args=(), device_types="cpu")
def chosen_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    seed: Tensor,
    threshold: Tensor,
    tie: Tensor,
    norm: Tensor,
    bits: Tensor,
    counts: Tensor,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    causal: bool,
    first_query: int,
    scale: float,
    dropout: float,
    block_size: int,
    sparsity: float,
    sink_blocks: int,
    local_blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output and what `chosen` returned of each row."""
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    job = fill(query, key, value, None, None, None, spans, plan)
    restrict(job, None, None, block_size, ())
    job.flat("chosen", bits)
    job.flat("block_counts", counts)
    job.set(words=bits.shape[-1])
    _divide(job, (bits, counts))
    packed = job["blocks_of_keys"] * block_size * (query.shape[3] + value.shape[3])
    per_row = threshold, tie, norm
    return gradients("chosen_backward", job, (grad, query, key, value), per_row, _room(job, 2) + packed)


@chosen_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[5:]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = chosen_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * (2 + len(ctx.options))


chosen.register_autograd(_gradients, setup_context=_remember)
chosen_backward.register_autograd(refuse_second("cpu"))


def _choices(query: Tensor, key: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    blocks = -(-key.shape[2] // block_size)
    counts = query.new_empty(query.shape[:3], dtype=torch.int32)
    return query.new_empty(*query.shape[:3], -(-blocks // 32), dtype=torch.int32), counts


def _choose(job: Job, choice: tuple[Tensor, Tensor], sparsity: float) -> None:
    """Let every query choose: which blocks, as bits, and how many."""
    from crisp_attention.kernels.cpu.chosen_blocks import TILE

    bits, counts = choice
    blocks = job["blocks_of_keys"]
    job.flat("chosen", bits)
    job.flat("block_counts", counts)
    job.table("shares", shares_of(sparsity, blocks))
    chunks = min(job["queries"], -(-2 * torch.get_num_threads() // (job["batch"] * job["groups"])))
    job.set(words=bits.shape[-1], chunks=chunks)
    columns = -(-blocks // LANES) * LANES
    size = columns * (TILE + job["width"]) + blocks * job["width"]
    launch(loaded("chosen_blocks", "choose"), job, chunks * job["batch"] * job["groups"], size)


def _divide(job: Job, choice: tuple[Tensor, Tensor]) -> None:
    """Enter the slots of a row and the rows of a tile."""
    most = max(1, int(choice[1].max()))
    rows = max(1, min(MOST_ROWS, TILE_SCORES // (most * job["block_size"]), job["queries"]))
    job.set(most_blocks=most, tile=rows)


def _room(job: Job, tiles: int) -> int:
    """Numbers that a thread needs for so many tiles, and for finding its way in them."""
    columns = job["most_blocks"] * job["block_size"]
    paths = job["blocks_of_keys"] + job["tile"] * (2 * job["most_blocks"] + 1)
    return 3 * (columns + LANES) + paths + tiles * job["tile"] * columns
