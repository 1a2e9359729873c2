"""The contenders of a measurement, including dense attention and ours."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
MATRICES = 8  # of scores, that the reference holds at a time
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
        return calling(self.attend, inputs, backward, torch.ones_like(inputs[0]))


def calling(
    attend: Attend,
    inputs: tuple[Tensor, Tensor, Tensor],
    backward: bool,
    along: Tensor,
    also: tuple[Tensor, ...] = (),
) -> Callable[[], tuple[Tensor, ...]]:
    """A forward pass, or one with a backward pass `along` a gradient, to the inputs and `also` to others."""
    if not backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (attend(*inputs),)

        return forward
    leaves = (*inputs, *also)
    for each in leaves:
        each.requires_grad_()
    return lambda: torch.autograd.grad(attend(*inputs), leaves, along)


@dataclass(frozen=True)
class Absent:
    """A contender that was not measured."""

    name: str
    reason: str


def dense(causal: bool = False) -> Contender:
    """torch's scaled_dot_product_attention."""
    return Contender(
        DENSE, lambda query, key, value: scaled_dot_product_attention(query, key, value, is_causal=causal)
    )


def crisp(method: Method, backend: str = "auto", causal: bool = False) -> Contender:
    """`crisp.attention`, with the kernel that it chooses or with the reference.

    What the method learns is drawn, as if it had been trained for a while.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not method.has_parameters:
            return attention(query, key, value, method, is_causal=causal, backend=backend)
        scale, parameters = query.shape[-1] ** -0.5, learned(method, query, key)
        call = KernelCall(query, key, value, method, scale, causal=causal, parameters=parameters)
        return dispatch.attention(call.seeded(), backend)[0]

    name, matrices = (REFERENCE, MATRICES) if backend == dispatch.REFERENCE else (CRISP, 0)
    return Contender(name, attend, matrices)


def as_it_is_held(method: Method, shape: Shape) -> Contender:
    """`crisp`, with the matrices that it holds because the reference computes it; none where a kernel does."""
    found = crisp(method, causal=shape.causal)
    query, key, value = shape.inputs()
    parameters = learned(method, query, key)
    call = KernelCall(query, key, value, method, 1.0, causal=shape.causal, parameters=parameters)
    by_reference = any(part.kernel == dispatch.REFERENCE for part in dispatch.plan(call.seeded()))
    return replace(found, matrices=MATRICES) if by_reference else found


def learned(method: Method, query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """What the method learns, drawn as if it had been trained for a while."""
    generator = torch.Generator().manual_seed(0)
    shape = LayerShape(query.shape[1], key.shape[1], query.shape[-1])
    return {
        name: (each.value + 0.1 * torch.randn(each.value.shape, generator=generator)).to(query.device)
        for name, each in method.parameters(shape).items()
    }
