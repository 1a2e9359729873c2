"""Linear attention to chosen blocks as operators of torch, for autograd and torch.compile."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.linear.plan import STRETCH
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.threads import Job, loaded
from crisp_attention.kernels.derivatives import refuse_second

# Sums of blocks that are held at a time, as numbers: those of a few heads stay in the last cache.
HELD = 2**20


class _Launch:
    """A job over all pairs of an example and a key head, some of them at a time."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        marginal: Tensor,
        lengths: Tensor | None,
        block_size: int,
        feature_map: int,
    ) -> None:
        from crisp_attention.kernels.cpu.linear.job import LINEAR

        (batch, heads, tokens, features), (groups, width) = query.shape, (key.shape[1], value.shape[3])
        self.blocks, self.shared, self.all = -(-tokens // block_size), heads // groups, batch * groups
        each = features * (width + 1)
        self.stretches, self.threads = -(-each // STRETCH), torch.get_num_threads()
        pairs = min(self.all, max(1, HELD // (self.blocks * each * (1 + self.shared))))
        self.pairs = pairs
        self.job = Job(LINEAR)
        for name, states in (("query", query), ("key", key), ("value", value)):
            self.job.strided(name, states)
        self.job.flat("marginal", marginal)
        self.job.set(heads=heads, groups=groups, tokens=tokens, size=block_size, map=feature_map)
        self.job.set(features=features, width=width)
        if lengths is not None:
            self.job.flat("lengths", lengths)
        for name, lines in (("sums", 1), ("chosen", self.shared)):
            self.job.flat(name, torch.empty(pairs * lines * self.blocks * each, device="cpu"))
        rows = block_size * 2 * (features + width + 1) + features * width
        size = -(-max(rows, 6 * STRETCH + self.shared * self.blocks) // LANES) * LANES
        self.job.flat("scratch", torch.empty(self.threads, size, device="cpu"))
        self.job.set(scratch_size=size)

    def blockwise(self, name: str, function: str, lines: int) -> None:
        """Call a function of the module `name`, with an item for each block of `lines` of each pair."""
        self._start(name, function, lines * self.blocks)

    def stretchwise(self, name: str, function: str) -> None:
        """Call a function of the module `name`, with an item for each stretch of the sums of each pair."""
        self._start(name, function, self.stretches)

    def _start(self, name: str, function: str, items: int) -> None:
        threads = max(1, min(self.threads, self.job["pairs"] * items))
        self.job.start(loaded(f"linear.{name}", function), threads)

    def chunks(self) -> Iterator[None]:
        """Sets, one after another, as many pairs as are held at a time."""
        for first in range(0, self.all, self.pairs):
            self.job.set(first=first, pairs=min(self.pairs, self.all - first))
            yield


@torch.library.custom_op("crisp::linear", mutates_args=(), device_types="cpu")
def linear(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    marginal: Tensor,
    lengths: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    block_size: int,
    feature_map: int,
) -> tuple[Tensor, Tensor]:
    """Linear attention (B, H, L, Dv) to marginal blocks (B, H, n, n), and what every query weighs there (B, H, L).

    All float32; `lengths` (B,) int32 are the tokens that are real, the first ones. With a weight (Dv, Dv) and a bias
    the output is projected where anything weighs. Queries and keys are (B, H, L, F) and (B, G, L, F), F a multiple
    of 16.
    """
    out, weighed = _outputs(query, value)
    launch = _Launch(query, key, value, marginal, lengths, block_size, feature_map)
    job = launch.job
    job.strided("out", out)
    if base is not None:
        job.strided("base", base)
    job.flat("weighed", weighed)
    if weight is not None and bias is not None:
        job.flat("weight", weight.T)
        job.flat("bias", bias)
    for _ in launch.chunks():
        launch.blockwise("forward", "key_sums", 1)
        launch.stretchwise("forward", "chosen_sums")
        launch.blockwise("forward", "attend", launch.shared)
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
    launch = _Launch(query, key, value, marginal, lengths, block_size, feature_map)
    job = launch.job
    query_grad, key_grad, value_grad = (states.new_empty(states.shape) for states in (query, key, value))
    job.strided("query_grad", query_grad)
    job.strided("key_grad", key_grad)
    job.strided("value_grad", value_grad)
    job.strided("grad", grad)
    width = value.shape[3] if weight is not None else 0
    weight_grads = query.new_zeros(launch.threads, width, width)
    bias_grads = query.new_zeros(launch.threads, width, dtype=torch.float64)
    if weight is not None:
        job.flat("weight", weight)
        job.flat("weight_grad", weight_grads)
        job.flat("bias_grad", bias_grads)
    for _ in launch.chunks():
        launch.blockwise("forward", "key_sums", 1)
        launch.stretchwise("forward", "chosen_sums")
        launch.blockwise("backward", "query_gradients", launch.shared)
        launch.stretchwise("backward", "chosen_slopes")
        launch.blockwise("backward", "key_gradients", 1)
    return query_grad, key_grad, value_grad, weight_grads.sum(dim=0), bias_grads.sum(dim=0).float()


@linear_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width = value.shape[3] if rest[2] is not None else 0
    weights = query.new_empty(width, width), query.new_empty(width)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), *weights


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.mark_non_differentiable(output[1])
    ctx.based = inputs[7] is not None
    ctx.options = inputs[8:]


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, weight, bias = linear_backward(grad, *ctx.saved_tensors, *ctx.options)
    projected = (weight, bias) if ctx.saved_tensors[5] is not None else (None, None)
    return query, key, value, None, None, *projected, grad if ctx.based else None, None, None


linear.register_autograd(_gradients, setup_context=_remember)
linear_backward.register_autograd(refuse_second("cpu"))
