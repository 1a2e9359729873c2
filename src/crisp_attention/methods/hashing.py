"""Drawing by a hash of numbers: the same on every machine, and independent of any generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

MASK32, MULTIPLIER = 0xFFFFFFFF, 0x45D9F3B


def mix(value: Tensor) -> Tensor:
    """A 32-bit integer hash in int64 arithmetic (the multiplier keeps products below 2**63)."""
    value = ((value ^ (value >> 16)) * MULTIPLIER) & MASK32
    value = ((value ^ (value >> 16)) * MULTIPLIER) & MASK32
    return value ^ (value >> 16)


def head_seeds(seed: Tensor, heads: int, numbers: Sequence[int] | None = None) -> Tensor:
    """A seed for every head, (B or 1, heads, 1, 1), from one seed or one per example.

    `numbers` are those of the heads in their layer, by default from 0.
    """
    device = seed.device
    head = torch.arange(heads, device=device) if numbers is None else torch.tensor(numbers, device=device)
    return mix(mix(seed & MASK32) + head[None, :, None, None])


def drawn(seeds: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A random whole number for every pair of two numbers; of 24 bits, which float32 holds exactly."""
    return (mix(mix(seeds + first) + second) >> 8).to(torch.float32)
