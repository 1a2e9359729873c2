"""Which queries and keys are close in the space of the projections: three ways to tell."""

from collections.abc import Mapping

import torch
from torch import Tensor


def project(weights: Mapping[str, Tensor], query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, n, D) by the weights "query" (H, D, r) and, where there are some, "key" and "offset"."""
    found = query @ weights["query"]
    if "key" not in weights:
        return found, key @ weights["query"]
    return found + weights["offset"], key @ weights["key"]


def nearest(states: Tensor, centers: Tensor, top: int) -> Tensor:
    """The clusters of each state, bool (B, H, n, R · C): in each of R runs the `top` of C whose centres are nearest.

    States (B, H, n, r), centres (H, R, C, r). A state that is not finite is in all of them, and so reaches everyone.
    """
    runs, count = centers.shape[1:3]
    # in float64: float32 loses the last bits of nearby distances to the norms, and the nearest may change
    centers = centers.double().flatten(1, 2)
    found = states.double()
    distances = centers.square().sum(dim=-1)[:, None] - 2 * found @ centers.transpose(-1, -2)
    distances = distances.unflatten(-1, (runs, count))
    chosen = distances.topk(top, dim=-1, largest=False).indices
    member = (chosen[..., None] == torch.arange(count, device=states.device)).any(dim=-2)
    broken = ~states.isfinite().all(dim=-1, keepdim=True)
    return (member | broken[..., None]).flatten(-2)


def buckets(states: Tensor, real: Tensor, size: int) -> Tensor:
    """The bucket of each real state by every coordinate, (B, H, n, r): they are sorted, and `size` of them share one.

    `real` is bool (B or 1, 1, n). The others come last, and what bucket they are in has no meaning. A state that is not
    finite takes no place in a bucket: it is in all of them, which is written as -1.
    """
    broken = ~states.isfinite().all(dim=-1, keepdim=True)
    ordered = states.masked_fill(~real[..., None] | broken, torch.inf).argsort(dim=2, stable=True)
    return (ordered.argsort(dim=2) // size).masked_fill(broken & real[..., None], -1)


def within(query: Tensor, key: Tensor, threshold: float) -> Tensor:
    """The pairs whose squared distance is less than the threshold, bool (B, H, n, m); NaN is less.

    Coordinates are taken one after another: the distance of equal ones is exactly 0.
    """
    total = torch.zeros((), dtype=query.dtype, device=query.device)
    for one, other in zip(query.unbind(-1), key.unbind(-1), strict=True):
        total = total + (one[..., :, None] - other[..., None, :]).square()
    return ~(total >= threshold)


def share_cluster(query: Tensor, key: Tensor) -> Tensor:
    """The pairs that have a cluster in common, bool (B, H, n, m), of what `nearest` gives."""
    return (query.float() @ key.float().transpose(-1, -2)) > 0


def share_bucket(query: Tensor, key: Tensor) -> Tensor:
    """The pairs that share the bucket of a coordinate, bool (B, H, n, m), of what `buckets` gives."""
    found = torch.zeros((), dtype=torch.bool, device=query.device)
    for one, other in zip(query.unbind(-1), key.unbind(-1), strict=True):
        one, other = one[..., :, None], other[..., None, :]
        found = found | (one == other) | (one < 0) | (other < 0)
    return found
