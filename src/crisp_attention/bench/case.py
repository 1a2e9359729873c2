"""What is measured: attention of one method on inputs of one shape."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crisp_attention.methods.method import Method


@dataclass(frozen=True)
class Shape:
    """Self-attention: queries, keys and values are all (batch, heads, length, width)."""

    batch: int
    heads: int
    length: int
    width: int
    dtype: str = "float32"
    device: str = "cpu"
    causal: bool = False

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value: independent normal numbers, the same ones every time."""
        generator = torch.Generator().manual_seed(0)
        size = (self.batch, self.heads, self.length, self.width)
        drawn = [torch.randn(size, generator=generator) for _ in range(3)]
        query, key, value = (each.to(self.device, getattr(torch, self.dtype)) for each in drawn)
        return query, key, value

    @property
    def products(self) -> float:
        """Floating point operations of one product of all queries with all keys."""
        return 2.0 * self.batch * self.heads * self.length**2 * self.width

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all scores in float32."""
        return 4 * self.batch * self.heads * self.length**2


@dataclass(frozen=True)
class Case:
    """A method, a shape, and whether the backward pass is timed with the forward pass."""

    method: Method
    shape: Shape
    backward: bool
