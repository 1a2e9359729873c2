"""The error of kernels with first derivatives only, all but the reference, when second ones are requested."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def refuse_second(kernel: str) -> Callable[..., Any]:
    """A backward function for the gradients of a kernel; it raises NotImplementedError."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"the {kernel} kernel has first derivatives only; for second derivatives (create_graph=True, gradient "
            f'penalties, Hessians) pass backend="reference" to crisp.attention or crisp.sparsify'
        )

    return backward


class OnlyOnce(torch.autograd.Function):
    """`OnlyOnce.apply(tensor, kernel)`: an input of a function whose backward pass does not name the alternative."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, kernel: str) -> Tensor:
        ctx.kernel = kernel
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Refusing.apply(grad, ctx.kernel), None


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, kernel: str) -> Tensor:
        ctx.kernel = kernel
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return refuse_second(ctx.kernel)(ctx, *grads)
