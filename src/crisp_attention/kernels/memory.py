"""Tensors as kernels read them: by an address and strides, past whatever view torch has of them."""

from torch import Tensor
from torch.nn.functional import pad


def by_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied unless the numbers of each of its rows lie side by side.

    Rows themselves may overlap, repeat or lie in any order: readers use their strides. What is
    written to is allocated separately, never laid out like an input, whose elements may share memory.
    """
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def apart(tensor: Tensor) -> Tensor:
    """The tensor, copied if any of its elements share memory: for code that lays out results like their inputs."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return tensor.contiguous()
            reach += stride * (size - 1)
    return tensor


def widened(tensor: Tensor, missing: int) -> Tensor:
    """The tensor with so many zeros added to each of its rows, side by side: the tensor itself for none."""
    return pad(tensor, (0, missing)).contiguous() if missing else tensor
