"""Linear attention to marginal blocks as operators of torch, alone and with the critical blocks."""

from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.block_operators import blocks as critical
from crisp_attention.kernels.cpu.block_operators import blocks_backward as critical_backward
from crisp_attention.kernels.cpu.block_operators import spans_of
from crisp_attention.kernels.cpu.linear.launch import Launch
from crisp_attention.kernels.derivatives import refuse_second


@torch.library.custom_op("crisp::linear", mutates_args=(), device_types="cpu")
def linear(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    marginal: Tensor,
    lengths: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    block_size: int,
    feature_map: int,
) -> tuple[Tensor, Tensor]:
    """Linear attention (B, H, L, Dv) to marginal blocks (B, H, n, n), and what every query weighs there (B, H, L).

    All float32; `lengths` (B,) int32 are the tokens that are real, the first ones. With a weight (Dv, Dv) and a bias
    the output is projected where anything weighs. Queries and keys are (B, H, L, F) and (B, G, L, F), F a multiple
    of 16.
    """
    out, weighed = _outputs(query, value)
    Launch(query, key, value, marginal, lengths, block_size, feature_map).attend(
        out, weighed, weight, bias, None
    )
    return out, weighed


@linear.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(query, value)


def _outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _ = query.shape
    # laid out as models want it next: (B, L, H, Dv)
    out = query.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)
    return out, query.new_empty(batch, heads, tokens)


@torch.library.custom_op("crisp::linear_backward", mutates_args=(), device_types="cpu")
def linear_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    marginal: Tensor,
    lengths: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    block_size: int,
    feature_map: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, weight and bias; the last two are empty without a weight."""
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    launch = Launch(query, key, value, marginal, lengths, block_size, feature_map)
    return *grads, *launch.differentiate(grad, grads, weight, add=False)


def _gradients_like(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width = 0 if weight is None else weight.shape[0]
    weights = query.new_empty(width, width), query.new_empty(width)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), *weights


@linear_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients_like(query, key, value, rest[2])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[7:]


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # which torch's checkpointing lets nobody read twice
    query, key, value, weight, bias = linear_backward(grad, *saved, *ctx.options)
    projected = (weight, bias) if saved[5] is not None else (None, None)
    return query, key, value, None, None, *projected, None, None


linear.register_autograd(_gradients, setup_context=_remember)
linear_backward.register_autograd(refuse_second("cpu"))


@torch.library.custom_op("crisp::sparse_linear", mutates_args=(), device_types="cpu")
def sparse_linear(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    block_counts: Tensor,
    lengths: Tensor | None,
    seed: Tensor,
    marginal: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    scale: float,
    dropout: float,
    block_size: int,
    feature_map: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `crisp::blocks` gives of the listed blocks, with `linear` added to its output.

    In one operator, so that no second output and no second set of gradients is held.
    """
    numbers = rule, level, mass, n, m, False, 0, scale, dropout, block_size, (), 0
    out, *per_row = critical(query, key, value, blocks, block_counts, spans_of(lengths), seed, *numbers)
    weighed = query.new_empty(query.shape[:3])
    launch = Launch(query, key, value, marginal, lengths, block_size, feature_map)
    launch.attend(out, weighed, weight, bias, base=out)
    return out, *per_row


@sparse_linear.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, per_row = _outputs(query, value)
    norm = query.new_empty(*per_row.shape, 2)
    return out, per_row, torch.empty_like(per_row, dtype=torch.int32), norm


@torch.library.custom_op("crisp::sparse_linear_backward", mutates_args=(), device_types="cpu")
def sparse_linear_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    block_counts: Tensor,
    lengths: Tensor | None,
    seed: Tensor,
    marginal: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    threshold: Tensor,
    tie: Tensor,
    norm: Tensor,
    rule: int,
    level: float,
    mass: float,
    n: int,
    m: int,
    scale: float,
    dropout: float,
    block_size: int,
    feature_map: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, weight and bias; the last two are empty without a weight."""
    numbers = rule, level, mass, n, m, False, 0, scale, dropout, block_size, ()
    shown = blocks, block_counts, spans_of(lengths), seed, threshold, tie, norm
    grads = critical_backward(grad, query, key, value, *shown, *numbers)
    launch = Launch(query, key, value, marginal, lengths, block_size, feature_map)
    return *grads, *launch.differentiate(grad, grads, weight, add=True)


@sparse_linear_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients_like(query, key, value, rest[5])


def _remember_both(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:10], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[10:]


def _gradients_of_both(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    query, key, value, weight, bias = sparse_linear_backward(grad, *saved, *ctx.options)
    projected = (weight, bias) if saved[8] is not None else (None, None)
    return query, key, value, *[None] * 5, *projected, *[None] * len(ctx.options)


sparse_linear.register_autograd(_gradients_of_both, setup_context=_remember_both)
sparse_linear_backward.register_autograd(refuse_second("cpu"))
