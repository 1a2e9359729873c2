"""Models of layers that can be pruned."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crisp_attention.pruning.matrices import Matrix


def linear(outputs: int, inputs: int, seed: int = 0) -> Matrix:
    return _random(nn.Linear(inputs, outputs), seed)


def conv1d(outputs: int, inputs: int, seed: int = 0) -> Matrix:
    return _random(Conv1D(outputs, inputs), seed)


def conv2d(outputs: int, inputs: int, seed: int = 0) -> Matrix:
    """With kernels of 2 x 2, so `inputs` is four times the channels."""
    return _random(nn.Conv2d(inputs // 4, outputs, 2), seed)


KINDS = {"Linear": linear, "Conv1D": conv1d, "Conv2d": conv2d}


def _random(module: nn.Module, seed: int) -> Matrix:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return Matrix(f"layer{seed}", module)
