"""The attention that a model had before it became sparse: it computes the layers that drop nothing."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

from crisp_attention.kernels.recording import note
from crisp_attention.methods.pairs import causal_mask
from crisp_attention.models.transformers.calling import INTERFACE, calling

EAGER, SDPA = "eager", "sdpa"
ONLY_EAGER = ("softcap", "s_aux")  # arguments that torch's SDPA has nothing for
# the kind of masks that a function takes, by the function that makes them
ADDITIVE, BOOLEAN, NONE = "additive", "boolean", "none"
KINDS = {eager_mask: ADDITIVE, sdpa_mask: BOOLEAN, None: NONE}

# a function of transformers' attention interface, and the kind of its masks
Own = tuple[Callable[..., tuple[Tensor, Tensor | None]], str]


def compute(
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    causal: bool,
    original: str,
    given: Mapping[str, Any],
    weights: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """Output (B, L, H, Dv) and, if asked for, weights of a module by its attention `original`; None if it has none.

    A boolean or additive `mask` and `causal` determine the valid pairs; `given` are the other arguments of the
    call. A function that has no weights, such as SDPA, leaves them to eager attention, without dropout.
    """
    only_eager = any(given.get(name) is not None for name in ONLY_EAGER)
    own, eager = _own(type(module), original, only_eager), _own(type(module), EAGER, only_eager)
    if own is None or (weights and eager is None):
        return None
    more = {name: value for name, value in given.items() if name != "output_attentions"}  # SDPA warns of it
    note(implementation(type(module), original, only_eager))
    output, found = own[0](module, *states, _mask(own[1], states, mask, causal), **more)
    if weights and found is None and eager is not None:
        more["dropout"] = 0.0
        _, found = eager[0](module, *states, _mask(eager[1], states, mask, causal), **more)
    return output, found


def implementation(cls: type[nn.Module], original: str, only_eager: bool) -> str:
    """The name of what computes a module's own attention: `original`, or what stands for it.

    `only_eager`: the call has arguments that torch's SDPA has nothing for (`ONLY_EAGER`).
    """
    _, eager, name, _ = _place(cls, original, only_eager)
    return EAGER if eager else name


def _mask(
    kind: str, states: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, causal: bool
) -> Tensor | None:
    """The same in a mask of this kind; functions with boolean masks are causal by themselves, if there is no mask."""
    query, key, _ = states
    if kind == NONE:
        return None
    if causal and (mask is not None or kind == ADDITIVE):
        triangle = causal_mask(query.shape[2], key.shape[2], query.device)
        mask = triangle if mask is None else mask & triangle
    if mask is None or mask.dtype != torch.bool or kind == BOOLEAN:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def _own(cls: type[nn.Module], original: str, only_eager: bool) -> Own | None:
    file, eager, name, kind = _place(cls, original, only_eager)
    there = sys.modules.get(file)
    if there is None or (eager and not name):
        return None
    return (getattr(there, name) if eager else getattr(there, INTERFACE)[name]), kind


@torch.compiler.assume_constant_result  # in words: functions cannot be constants of torch.compile
def _place(cls: type[nn.Module], original: str, only_eager: bool) -> tuple[str, bool, str, str]:
    """The function's file, whether it is the eager one there, its name there or in the interface, its kind of masks."""
    # Masks of other kinds, such as those of flash and flex attention, cannot be made from pairs: torch's SDPA
    # stands for these functions, or eager attention where a call needs it.
    found = calling(cls)
    kind = KINDS.get(ALL_MASK_ATTENTION_FUNCTIONS.get(original))
    known = kind is not None and original in getattr(sys.modules.get(found.file), INTERFACE, ())
    if original == EAGER or (only_eager and not known):
        return found.file, True, found.eager or "", ADDITIVE
    return (found.file, False, original, kind) if kind and known else (found.file, False, SDPA, BOOLEAN)
