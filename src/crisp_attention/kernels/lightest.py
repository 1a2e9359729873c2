"""Calls of operators without the time that torch takes to look after them, where it need not."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crisp_attention.methods.ranking import is_plain


def lightest(
    plain: Callable[..., Any], operator: Callable[..., Any], states: Sequence[Tensor]
) -> Callable[..., Any]:
    """The `plain` function of an operator where no gradient, compiler, trace or mode of torch needs to know of it.

    That saves as much time as a short row takes.
    """
    return plain if is_unwatched(states) else operator


def is_unwatched(states: Sequence[Tensor]) -> bool:
    """Whether no gradient, compiler, trace or mode of torch needs to know what is done with these."""
    return not learns(states) and not _is_watched(states)


def lighter(
    plain: Callable[..., Any],
    node: Callable[..., Any],
    operator: Callable[..., Any],
    states: Sequence[Tensor],
) -> Callable[..., Any]:
    """As `lightest`, and the `node` that autograd remembers where gradients alone are the reason for more."""
    if _is_watched(states):
        return operator
    return node if learns(states) else plain


def node_of(
    plain: Callable[..., Any], remember: Callable[..., None], differentiate: Callable[..., Any]
) -> Callable[..., Any]:
    """What calls the `plain` function and is differentiable, by an operator's `setup_context` and its backward."""

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = plain(*inputs)
            remember(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> Any:
            return differentiate(ctx, *given)

    return Node.apply


def learns(states: Sequence[Tensor]) -> bool:
    """Whether gradients will be asked for of any of these."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in states)


def _is_watched(states: Sequence[Tensor]) -> bool:
    return not is_plain(*states) or torch._C._len_torch_dispatch_stack() > 0
