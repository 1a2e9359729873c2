"""The kernel of block layouts as an operator of torch, for autograd, torch.compile and export."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.operators import fill, gradients, launch, outputs, prepare
from crisp_attention.kernels.cpu.plan import LANES, Plan
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second


def restrict(
    job: Job,
    listed: Tensor | None,
    counts: Tensor | None,
    size: int,
    band: Sequence[int],
) -> None:
    """Enter which blocks of keys (B, H, n, n) each block of queries sees, how many, and a band."""
    blocks = -(-job["keys"] // size)
    most = 0
    job.set(blocks_of_keys=blocks)
    if listed is not None and counts is not None:
        most = max(1, int(counts.max()))
        job.flat("blocks", listed[..., :most])
        job.flat("block_counts", counts)
        job.set(listed_blocks=most)
    if band:
        reach, dilation, local, global_tokens = band
        job.set(band=1, reach=reach, dilation=dilation, local=local, global_tokens=global_tokens)
        near = (size + 2 * max(reach, local - 1)) // size + 2
        most = blocks if global_tokens else min(blocks, most + near)
    job.set(most_blocks=most, block_size=size, tile=size)


def spans_of(lengths: Tensor | None) -> Tensor | None:
    """The first valid key of each example, 0, and the one after the last, (B, 2), given how many there are (B,)."""
    return None if lengths is None else torch.stack([torch.zeros_like(lengths), lengths], dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    listed: Tensor | None,
    counts: Tensor | None,
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
    band: Sequence[int],
    few: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv) and per row threshold, tie (B, H, L) and norm (B, H, L, 2); all float32, tie int32.

    Queries see the keys of the blocks that are listed for theirs, and those of the band: its reach, dilation, distances
    that are all seen, and global tokens; an empty one is none. For at most `few` queries keys are not packed, whose
    scores then differ in the last bits from those of the backward pass.
    """
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    results = outputs(query, value)
    job = fill(query, key, value, None, None, None, spans, plan)
    restrict(job, listed, counts, block_size, band)
    prepare(job, plan, results)
    job.set(whole=query.shape[2] > few)
    tiles = -(-query.shape[2] // block_size)
    size = _room(job) + job["whole"] * job["blocks_of_keys"] * block_size * query.shape[3]
    launch(loaded("blocks_forward", "forward"), job, query.shape[0] * query.shape[1] * tiles, size)
    return results


blocks = torch.library.custom_op("crisp::blocks", mutates_args=(), device_types="cpu")(attend)


@blocks.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(query, value)


@torch.library.custom_op("crisp::blocks_backward", mutates_args=(), device_types="cpu")
def blocks_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    listed: Tensor | None,
    counts: Tensor | None,
    spans: Tensor | None,
    seed: Tensor,
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
    dropout: float,
    block_size: int,
    band: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output and what `blocks` returned of each row."""
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    job = fill(query, key, value, None, None, None, spans, plan)
    restrict(job, listed, counts, block_size, band)
    size = _room(job) + job["blocks_of_keys"] * block_size * (query.shape[3] + value.shape[3])
    return gradients("blocks_backward", job, (grad, query, key, value), (threshold, tie, norm), size)


@blocks_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[7:-1]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = blocks_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * (5 + len(ctx.options))


blocks.register_autograd(_gradients, setup_context=_remember)
blocks_backward.register_autograd(refuse_second("cpu"))


def _room(job: Job) -> int:
    """Numbers that a thread needs beside packed keys and values."""
    columns = job["most_blocks"] * job["block_size"]
    return 4 * (columns + LANES) + 2 * job["block_size"] * columns
