"""Taking exactly k of a row, the largest, and moving a row's keys together."""

import numpy as np
import torch
from torch import Tensor

# 0.3 * 10 is 3 however 0.3 is rounded: shares are compared with this to spare.
ROUNDING = 1e-9
# Shares are counted in whole numbers, of units of 2**-62 in two halves: ONNX rounds constants to float32.
HALF = 2**31


def share_count(seen: Tensor, sparsity: float, minimum: int = 1) -> Tensor:
    """max(minimum, ceil((1 - sparsity) * seen)), at most `seen`, which is below 2**31; int64, elementwise.

    A share within 1e-9 above a whole number is that number: exact for every float, and for decimals as written.
    """
    seen = seen.long()
    share = round(sparsity * HALF**2)
    low = (share % HALF * seen + round(ROUNDING * HALF**2)) // HALF
    dropped = (share // HALF * seen + low) // HALF
    return torch.minimum((seen - dropped).clamp(min=minimum), seen)


def share_is_whole(seen: int, sparsity: float) -> bool:
    """Whether `share_count` of `seen` keys, and of fewer, is all of them: sparsity * seen rounds down to 0."""
    return sparsity * seen < 1 - ROUNDING


def keep_largest(ranked: Tensor, visible: Tensor, count: Tensor) -> Tensor:
    """Exactly `count` (..., 1) visible entries of each row, the largest; among equals the lower index wins.

    A row whose visible entries hold NaN keeps all it sees, so that the NaN reaches the output.
    """
    ranked = torch.where(visible, ranked, -torch.inf)
    ordered = sort_rows(ranked)
    first = ranked.shape[-1] - count
    threshold, below = _pick(ordered, first), _pick(ordered, first - 1)
    broken = ordered[..., -1:].isnan()  # NaN is sorted last
    if on_host(ranked) and not ((below == threshold) | broken).any():
        return ranked >= threshold
    above = ranked > threshold
    tied = (ranked == threshold) & visible
    room = count - above.sum(dim=-1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=-1) <= room)) | (broken & visible)


def compact(values: Tensor, ranks: Tensor, member: Tensor, slots: int, fill: float) -> Tensor:
    """Entries of the last dimension moved to slot `rank - 1`; (..., S) becomes (..., slots).

    Only `member` entries move; slots that nothing moves to hold `fill`. `ranks` and `member`
    broadcast to `values`; the ranks of a row's members are distinct.
    """
    place = torch.where(member, ranks - 1, slots).expand_as(values)
    moved = values.new_full((*values.shape[:-1], slots + 1), fill)
    return moved.scatter(-1, place, values)[..., :slots]


def grouped(values: Tensor, ranks: Tensor, member: Tensor, size: int, fill: float) -> Tensor:
    """The members of each row in groups of `size` in the order of their ranks, (..., groups, size).

    There is one group more than a row could fill, so that no length has a single one: programs that
    torch.export makes for all lengths treat a dimension of one as another kind. See `compact` for the rest.
    """
    groups = -(-values.shape[-1] // size) + 1
    return compact(values, ranks, member, groups * size, fill).unfold(-1, size, size)


def sort_rows(values: Tensor) -> Tensor:
    """Each row in ascending order."""
    # numpy's vectorised sort of short float rows beats torch's sort and top-k on CPUs by far
    if on_host(values):
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def widest(values: Tensor) -> torch.dtype:
    """The most precise floating dtype of the device: float64, on Apple's GPUs float32."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def on_host(values: Tensor) -> bool:
    """Where looking at values is free and allowed: no transfer, no graph to break, no trace to mislead."""
    return values.device.type == "cpu" and is_plain(values)


def is_plain(*values: Tensor) -> bool:
    """Whether nothing records or transforms what is done with tensors, autograd and modes of dispatch aside."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return all(type(each) is Tensor and not wrapped(each) for each in values)


def _pick(ordered: Tensor, index: Tensor) -> Tensor:
    index = index.clamp(0, ordered.shape[-1] - 1)
    return ordered.gather(-1, index.expand(*ordered.shape[:-1], 1))
