"""The contenders of a measurement, including dense attention and ours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.bench.case import Shape
from crisp_attention.functional import attention
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call as KernelCall
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape as LayerShape

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Call = Callable[[], object]
DENSE, CRISP, REFERENCE = "dense SDPA", "crisp", "crisp reference"


class UnavailableError(Exception):
    """Says why a contender cannot take part."""


@dataclass(frozen=True)
class Contender:
    """One way to compute attention, built for a method and a shape.

    matrices: how many matrices of scores it holds at a time, about, in float32; 0 if none.
    """

    name: str
    attend: Attend
    matrices: int = 0

    def call(self, shape: Shape, backward: bool) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: the forward pass, or with it the gradients of query, key and value."""
        inputs = shape.inputs()
        if not backward:

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (self.attend(*inputs),)

            return forward
        gradient = torch.ones_like(inputs[0])
        for each in inputs:
            each.requires_grad_()
        return lambda: torch.autograd.grad(self.attend(*inputs), inputs, gradient)


@dataclass(frozen=True)
class Absent:
    """A contender that was not measured."""

    name: str
    reason: str


def dense() -> Contender:
    """torch's scaled_dot_product_attention."""
    return Contender(DENSE, lambda query, key, value: scaled_dot_product_attention(query, key, value))


def crisp(method: Method, backend: str = "auto") -> Contender:
    """`crisp.attention`, with the kernel that it chooses or with the reference.

    What the method learns is drawn, as if it had been trained for a while.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not method.has_parameters:
            return attention(query, key, value, method, backend=backend)
        scale = query.shape[-1] ** -0.5
        call = KernelCall(query, key, value, method, scale, parameters=learned(method, query, key))
        return dispatch.attention(call, backend)[0]

    name, matrices = (REFERENCE, 8) if backend == "reference" else (CRISP, 0)
    return Contender(name, attend, matrices)


def learned(method: Method, query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """What the method learns, drawn as if it had been trained for a while."""
    generator = torch.Generator().manual_seed(0)
    shape = LayerShape(query.shape[1], key.shape[1], query.shape[-1])
    return {
        name: (each.value + 0.1 * torch.randn(each.value.shape, generator=generator)).to(query.device)
        for name, each in method.parameters(shape).items()
    }
