"""The kernel of layouts that decide by numbers of tokens, as an operator of torch."""

from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.operators import fill, gradients, launch, outputs, prepare
from crisp_attention.kernels.cpu.plan import BLOCKS, KEYS, LANES, NO_TRAITS, TRAITS, Plan, shares_of
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.methods.sight import Sight


def numbers_of(sight: Sight) -> tuple[Any, ...]:
    """What the operator is told of a sight: traits of queries and of keys and seeds of heads, and then numbers."""
    traits, draw = sight.traits, sight.draw
    query, key = (None, None) if traits is None else traits.numbers()
    kind, threshold = (NO_TRAITS, 0.0) if traits is None else (TRAITS[traits.kind], traits.threshold)
    seeds = None if draw is None else draw.seeds.flatten().to(torch.int32)
    drawn, sparsity, blocks, size = 0, 0.0, 0, 0
    if draw is not None:
        drawn, blocks, size = BLOCKS, draw.blocks, draw.size
        if draw.sparsity is not None:
            drawn, sparsity = KEYS, draw.sparsity
    return (
        query,
        key,
        seeds,
        kind,
        threshold,
        sight.reach,
        sight.first,
        sight.last,
        drawn,
        sparsity,
        blocks,
        size,
    )


def _job(
    states: tuple[Tensor, Tensor, Tensor],
    told: tuple[Tensor | None, ...],
    plan: Plan,
    numbers: tuple[float, ...],
) -> Job:
    spans, query_traits, key_traits, seeds = told
    kind, threshold, reach, first, last, drawn, sparsity, blocks, size = numbers
    job = fill(*states, None, None, None, spans, plan)
    job.set(traits=kind, distance=threshold, reach=reach, global_tokens=first, last_tokens=last)
    job.set(drawn=drawn, drawn_blocks=blocks, drawn_size=size)
    if query_traits is not None and key_traits is not None:
        job.flat("query_traits", query_traits)
        job.flat("key_traits", key_traits)
        job.set(columns_of_traits=query_traits.shape[-1])
    if seeds is not None:
        job.flat("head_seeds", seeds)
    if drawn == KEYS:
        job.table("shares", shares_of(sparsity, job["keys"]))
    return job


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    query_traits: Tensor | None,
    key_traits: Tensor | None,
    seeds: Tensor | None,
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
    kind: int,
    threshold: float,
    reach: int,
    first: int,
    last: int,
    drawn: int,
    sparsity: float,
    blocks: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv) and per row threshold, tie (B, H, L) and norm (B, H, L, 2); all float32, tie int32.

    Queries see the keys that `methods.sight` says, in the numbers of `numbers_of`.
    """
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    numbers = kind, threshold, reach, first, last, drawn, sparsity, blocks, size
    job = _job((query, key, value), (spans, query_traits, key_traits, seeds), plan, numbers)
    results = outputs(query, value)
    prepare(job, plan, results)
    tiles = -(-query.shape[2] // job["tile"])
    launch(loaded("sighted_forward", "forward"), job, query.shape[0] * query.shape[1] * tiles, _room(job))
    return results


sighted = torch.library.custom_op("crisp::sighted", mutates_args=(), device_types="cpu")(attend)


@sighted.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(query, value)


@torch.library.custom_op("crisp::sighted_backward", mutates_args=(), device_types="cpu")
def sighted_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    query_traits: Tensor | None,
    key_traits: Tensor | None,
    seeds: Tensor | None,
    seed: Tensor,
    per_threshold: Tensor,
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
    kind: int,
    threshold: float,
    reach: int,
    first: int,
    last: int,
    drawn: int,
    sparsity: float,
    blocks: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output and what `sighted` returned of each row."""
    plan = Plan(rule, level, mass, n, m, causal, scale, dropout, int(seed), first_query=first_query)
    numbers = kind, threshold, reach, first, last, drawn, sparsity, blocks, size
    job = _job((query, key, value), (spans, query_traits, key_traits, seeds), plan, numbers)
    states, per_row = (grad, query, key, value), (per_threshold, tie, norm)
    return gradients("sighted_backward", job, states, per_row, _room(job))


@sighted_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[8:]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = sighted_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * (5 + len(ctx.options))


sighted.register_autograd(_gradients, setup_context=_remember)
sighted_backward.register_autograd(refuse_second("cpu"))


def _room(job: Job) -> int:
    """Numbers that a thread needs."""
    return 6 * (-(-job["keys"] // LANES) * LANES + LANES)
