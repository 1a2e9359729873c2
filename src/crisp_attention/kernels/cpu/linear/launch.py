"""Linear attention to marginal blocks, forward and backward, as a job of several compiled functions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crisp_attention.kernels.cpu.linear.plan import STRETCH
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.threads import Job, loaded

# Sums of blocks that are held at a time, as numbers: those of a few heads stay in the last cache.
HELD = 2**20
SEGMENTS = 32  # of the work of a backward pass, each done by one thread


class Launch:
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
        """`marginal` is bool (B, H, n, n); `lengths` (B,) int32 are the tokens that are real, the first ones."""
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
            self.job.flat(
                name, torch.empty(pairs * lines * self.blocks * each, dtype=torch.float32, device="cpu")
            )
        self.job.flat(
            "direct", torch.empty(pairs * self.shared * self.blocks, dtype=torch.uint8, device="cpu")
        )
        squares = torch.empty(pairs * self.shared * self.blocks * features, dtype=torch.float64, device="cpu")
        self.job.flat("squares", squares)
        self.job.set(segments=SEGMENTS)
        rows = block_size * 2 * (features + width + 1) + features * width
        size = -(-max(rows, 6 * max(STRETCH, features) + self.shared * self.blocks) // LANES) * LANES
        self.job.flat("scratch", torch.empty(self.threads, size, dtype=torch.float32, device="cpu"))
        self.job.set(scratch_size=size)

    def attend(
        self, out: Tensor, weighed: Tensor, weight: Tensor | None, bias: Tensor | None, base: Tensor | None
    ) -> None:
        """Write linear attention (B, H, L, Dv) on top of `base`, which may be `out` itself, and what it weighs."""
        self.job.strided("out", out)
        if base is not None:
            self.job.strided("base", base)
        self.job.flat("weighed", weighed)
        if weight is not None and bias is not None:
            self.job.flat("weight", weight.T)
            self.job.flat("bias", bias)
        for _ in self._chunks():
            self._sums()
            self._blockwise("forward", "attend", self.shared)

    def differentiate(
        self, grad: Tensor, grads: tuple[Tensor, Tensor, Tensor], weight: Tensor | None, *, add: bool
    ) -> tuple[Tensor, Tensor]:
        """Write the gradients of query, key and value, or `add` them to what is there; returns those of the weights.

        These are empty without a weight.
        """
        for name, each in zip(("query_grad", "key_grad", "value_grad"), grads, strict=True):
            self.job.strided(name, each)
        self.job.strided("grad", grad)
        self.job.set(add=add)
        width = 0 if weight is None else weight.shape[0]
        weight_grads = grad.new_zeros(SEGMENTS, width, width)
        bias_grads = grad.new_zeros(SEGMENTS, width, dtype=torch.float64)
        if weight is not None:
            self.job.flat("weight", weight)
            self.job.flat("weight_grad", weight_grads)
            self.job.flat("bias_grad", bias_grads)
        for _ in self._chunks():
            self._sums()
            self._start("backward", "query_gradients", SEGMENTS)
            self._blockwise("backward", "spared_slopes", 1)
            self._stretchwise("backward", "chosen_slopes")
            self._blockwise("backward", "key_gradients", 1)
        return weight_grads.sum(dim=0), bias_grads.sum(dim=0).float()

    def _sums(self) -> None:
        self._blockwise("forward", "key_sums", 1)
        self._blockwise("forward", "spared_sums", self.shared)
        self._stretchwise("forward", "chosen_sums")

    def _blockwise(self, name: str, function: str, lines: int) -> None:
        """Call a function of the module `name`, with an item for each block of `lines` of each pair."""
        self._start(name, function, lines * self.blocks)

    def _stretchwise(self, name: str, function: str) -> None:
        """Call a function of the module `name`, with an item for each stretch of the sums of each pair."""
        self._start(name, function, self.stretches)

    def _start(self, name: str, function: str, items: int) -> None:
        threads = max(1, min(self.threads, self.job["pairs"] * items))
        self.job.start(loaded(f"linear.{name}", function), threads)

    def _chunks(self) -> Iterator[None]:
        """Sets, one after another, as many pairs as are held at a time."""
        for first in range(0, self.all, self.pairs):
            self.job.set(first=first, pairs=min(self.pairs, self.all - first))
            yield
