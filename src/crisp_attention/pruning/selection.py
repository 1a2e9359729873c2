"""Which weights are kept, by their scores: groups, balanced blocks, one threshold for all matrices (section 4.4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crisp_attention.pruning.matrices import Matrix
from crisp_attention.pruning.patterns import Pattern, spread, tiles_of

NORMALISED = ("sum", "mean")


@dataclass(frozen=True)
class Range:
    """The least and the largest share of zero weights that a pattern can give these matrices."""

    least: float
    largest: float


def range_of(matrices: Sequence[Matrix], pattern: Pattern) -> Range:
    """What share of all weights of `matrices` can be zero."""
    total = sum(each.weight.numel() for each in matrices)
    every = sum(_column(each, pattern) * _columns(each, pattern) for each in matrices)
    one = sum(_column(each, pattern) for each in matrices)
    return Range(1 - every / total, 1 - one / total)


def select(
    matrices: Sequence[Matrix],
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    target: float,
    before: Mapping[str, Tensor] | None = None,
    *,
    normalised: str = "sum",
    score_kept: bool = False,
) -> dict[str, Tensor]:
    """Masks by name, bool (outputs, inputs): True for weights that are kept.

    In each group the largest scores are kept. The scores of blocks, which are their sums, are sorted within each row of
    blocks; the k-th of all rows of a matrix are one rank column, which is kept or pruned together, so that every row
    keeps as many blocks. Of all matrices' rank columns the largest are kept that the target leaves room for, at least
    one of each matrix. So the share of zeros is the target, or more by less than a rank column, or what is pruned
    already where that is more.

    Parameters
    ----------
    matrices
        What is pruned; the target is for all of them together.
    scores
        By name, (outputs, inputs); larger is more important, of either sign.
    pattern
        Which zeros are allowed.
    target
        The share of all these weights that is to be zero.
    before
        Masks of an earlier selection: what they prune stays pruned.
    normalised
        How rank columns of different matrices compare: by the "sum" of their scores, as the paper's code, or by the
        "mean", of which matrices with many rows have no more than others.
    score_kept
        Whether blocks are scored by the weights alone that groups keep.

    The target must have been found possible by `check_target`.
    """
    grouped, orders, pooled = {}, {}, []
    room = (1 - target) * sum(each.weight.numel() for each in matrices)
    counts = dict.fromkeys((each.name for each in matrices), 1)
    for number, each in enumerate(matrices):
        own = scores[each.name].double()
        if before is not None:
            own = torch.where(before[each.name], own, -torch.inf)
        live = keep_in_groups(own, pattern) if pattern.groups_fit(each) else own > -torch.inf
        grouped[each.name] = live
        if not pattern.blocks_fit(each):
            room -= int(live.sum())
            continue
        kept = torch.where(live | (own == -torch.inf), own, 0.0) if score_kept else own
        orders[each.name], sums = _ranked(kept, pattern)
        sizes = _sizes(live, orders[each.name], pattern)
        room -= sizes[0]
        value = sums / (each.shape[0] if normalised == "mean" else 1)
        ranks = zip(value.tolist(), sizes, strict=True)
        pooled += [(-worth, number, rank, size) for rank, (worth, size) in enumerate(ranks) if rank > 0]
    for _, number, _, size in sorted(pooled):
        room -= size
        if room < -1e-6:
            break
        counts[matrices[number].name] += 1
    for name, order in orders.items():
        grouped[name] &= _first_blocks(order, counts[name], pattern)
    return grouped


def check_target(matrices: Sequence[Matrix], pattern: Pattern, target: float) -> None:
    """Raise ValueError unless the pattern can make this share of the weights of `matrices` zero."""
    possible = range_of(matrices, pattern)
    words = f"got {target:g}; {pattern} in {_number(matrices)} gives "
    # rounded inwards, so that what a message names is accepted
    least, largest = (
        math.ceil(1e4 * possible.least - 1e-6) / 1e4,
        math.floor(1e4 * possible.largest + 1e-6) / 1e4,
    )
    if pattern.block_size is None:
        if abs(target - possible.least) > 1e-4:
            raise ValueError(f"target must be what groups give, {words}{least:g}")
    elif not possible.least - 1e-9 <= target <= possible.largest + 1e-9:
        raise ValueError(f"target must be within the pattern's reach, {words}{least:g} to {largest:g}")


def check_zeros(matrices: Sequence[Matrix], pattern: Pattern, target: float) -> None:
    """Raise ValueError if a pattern with blocks leaves more zeros than the target beside those that are there.

    They may be more by less than a rank column, as after pruning to the same target.
    """
    left, total = 0, sum(each.weight.numel() for each in matrices)
    for each in matrices:
        nonzero = each.rows(each.weight.detach()) != 0
        if pattern.groups_fit(each) and nonzero.any():
            left += int(nonzero.unflatten(-1, (-1, pattern.of)).sum(dim=-1).clamp(max=pattern.kept).sum())
        else:
            left += int(nonzero.sum()) or nonzero.numel()
    column = max(_column(each, pattern) for each in matrices)
    if pattern.block_size is not None and left + column <= (1 - target) * total:
        least = math.ceil(1e4 * (1 - left / total) - 1e-6) / 1e4
        raise ValueError(
            f"target must be at least the zeros that are there, got {target:g}; with {pattern}, "
            f"{_number(matrices)} would have {least:g}"
        )


def _number(matrices: Sequence[Matrix]) -> str:
    return "this layer" if len(matrices) == 1 else f"these {len(matrices)} layers"


def keep_in_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """The largest scores of each group of each row, bool like `scores`; of equals the first; never one of -inf."""
    grouped = scores.unflatten(-1, (-1, pattern.of))
    order = grouped.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(pattern.of, device=scores.device) < pattern.kept
    keep = torch.zeros_like(grouped, dtype=torch.bool).scatter(-1, order, first.expand_as(grouped))
    return (keep & (grouped > -torch.inf)).flatten(-2)


def _ranked(scores: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The blocks of each row of blocks, best first (R, C), and the sums of the rank columns (C,)."""
    size = pattern.block_size
    assert size is not None
    blocks = tiles_of(scores, size)
    pruned = (blocks == -torch.inf).flatten(2).all(dim=2)
    sums = torch.where(blocks == -torch.inf, 0.0, blocks).sum(dim=(2, 3)).masked_fill(pruned, -torch.inf)
    order = sums.argsort(dim=1, descending=True, stable=True)
    return order, sums.gather(1, order).sum(dim=0)


def _sizes(live: Tensor, order: Tensor, pattern: Pattern) -> list[int]:
    """How many weights that are left each rank column has."""
    assert pattern.block_size is not None
    found: list[int] = tiles_of(live, pattern.block_size).sum(dim=(2, 3)).gather(1, order).sum(dim=0).tolist()
    return found


def _first_blocks(order: Tensor, count: int, pattern: Pattern) -> Tensor:
    """The first `count` blocks of each row in their `order` (R, C), as weights, bool (outputs, inputs)."""
    first = torch.arange(order.shape[1], device=order.device) < count
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, first.expand_as(order))
    size = pattern.block_size
    assert size is not None
    return spread(kept, size)


def _columns(matrix: Matrix, pattern: Pattern) -> int:
    """How many rank columns a matrix has; one that has no blocks is a single one."""
    if not pattern.blocks_fit(matrix):
        return 1
    assert pattern.block_size is not None
    return matrix.shape[1] // pattern.block_size


def _column(matrix: Matrix, pattern: Pattern) -> float:
    """How many weights are kept in one rank column."""
    density = pattern.density if pattern.groups_fit(matrix) else 1.0
    return matrix.weight.numel() / _columns(matrix, pattern) * density
