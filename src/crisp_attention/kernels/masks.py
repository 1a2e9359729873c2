"""Masks that say no more than lengths and an order: recognised once, so that kernels skip what they forbid."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from crisp_attention.kernels.call import Call
from crisp_attention.methods.pairs import causal_mask, span_mask
from crisp_attention.methods.rows import once


@dataclass(frozen=True)
class Shape:
    """What a mask comes to: `span` (B or 1, 2) int32, and the first query if it is causal, both as in `Call`."""

    span: Tensor
    first_query: int | None = None


# of masks that are alive, with the version that was looked at: the layers of a model share one
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def recognised(call: Call) -> Call:
    """The call with its mask as `span`, `causal` and `first_query`, if it is that and its values may be looked at.

    They may on CPUs, outside of programs that torch records or compiles.
    """
    mask = call.valid
    if mask is None or call.span is not None or not _may_be_read(mask):
        return call
    full = *call.query.shape[:3], call.key.shape[2]
    if any(size not in (1, whole) for size, whole in zip(mask.shape, full, strict=True)):
        return call  # for whatever computes it to refuse
    shape = _remembered(mask, call.query.shape[2])
    if shape is None:
        return call
    first = call.first_query if call.causal else None
    if shape.first_query is not None:
        first = shape.first_query if first is None else min(first, shape.first_query)
    span = shape.span.expand(call.query.shape[0], 2)
    return replace(call, valid=None, span=span, causal=first is not None, first_query=first or 0)


def _may_be_read(mask: Tensor) -> bool:
    recorded = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
    return type(mask) is Tensor and mask.device.type == "cpu" and mask.dim() == 4 and not recorded


def _remembered(mask: Tensor, queries: int) -> Shape | None:
    if mask.is_inference():  # which have no version
        return shape_of(mask, queries)
    known = _known.get(mask)
    if known is None or known[0] != mask._version:
        with torch.inference_mode(False):  # what is remembered may be needed by a backward pass
            known = _known[mask] = mask._version, shape_of(mask, queries)
    shape: Shape | None = known[1]
    return shape


def shape_of(mask: Tensor, queries: int) -> Shape | None:
    """What a mask, bool and broadcastable to (B, H, L, S), comes to; None if it says anything more."""
    if not mask.numel() or (mask.shape[1] > 1 and mask.stride(1)):
        return None
    seen = once(mask)[:, 0]  # (B or 1, L or 1, S)
    keys = seen.shape[-1]
    if keys != mask.shape[-1]:  # one number for all keys
        return None
    rows = seen.any(dim=1)
    first = rows.int().argmax(dim=-1)
    end = torch.where(rows.any(dim=-1), keys - rows.flip(-1).int().argmax(dim=-1), first)
    span = torch.stack([first, end], dim=-1).int()
    inside = span_mask(span, keys)[:, 0]
    if seen.shape[1] == 1 or seen.equal(inside.expand_as(seen)):
        return Shape(span) if seen.equal(inside.expand_as(seen)) else None
    # the first query of an example that sees a key, and its last key
    some = seen.any(dim=-1)
    query = some.int().argmax(dim=-1)
    row = seen[torch.arange(len(seen)), query]
    last = keys - 1 - row.flip(-1).int().argmax(dim=-1)
    candidates = (last - query)[some.any(dim=-1) & (last + 1 < end)]
    if not len(candidates):
        return None
    first_query = int(candidates[0])
    if first_query < 0 or not seen.equal(inside & causal_mask(queries, keys, mask.device, first_query)[0]):
        return None
    return Shape(span, first_query)
