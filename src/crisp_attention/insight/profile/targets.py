"""The methods whose outcome a profile knows, and dividing a number of pairs among heads by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import TopK

METHODS = {TopK.name: "top-k", BlockTopK.name: "blocks"}  # and in words
GRID = tuple(step / 40 for step in range(40))


@dataclass(frozen=True)
class Targets:
    """TopK, and BlockTopK with blocks of `block_size`, at the target `sparsities`, from 0 upwards."""

    block_size: int
    sparsities: tuple[float, ...]

    @classmethod
    def of(cls, block_size: int, further: Sequence[float]) -> "Targets":
        """The sparsities 0, 0.025 … 0.975 and `further` ones. Raises ValueError for what is none."""
        check_whole("block_size", block_size, 1)
        for each in further:
            check_number("sparsities", each, "[0, 1)")
        return cls(block_size, tuple(sorted({*GRID, *further})))

    def method(self, name: str, sparsity: float) -> Method:
        """The method of this name at a sparsity."""
        if name == TopK.name:
            return Method(rule=TopK(sparsity))
        return Method(layout=BlockTopK(sparsity, block_size=self.block_size))

    def find(self, method: Method) -> tuple[str, int]:
        """The name of a method and the index of its sparsity. Raises ValueError for an unknown one."""
        if method == Method():
            return TopK.name, 0
        if (sparsity := method.sparsity) is not None:
            for name in METHODS:
                if method == self.method(name, sparsity):
                    return name, self.index(sparsity)
        raise ValueError(
            f"the profile knows TopK(sparsity) and BlockTopK(sparsity, block_size={self.block_size}), "
            f"not {method.spec}"
        )

    def index(self, sparsity: float) -> int:
        """The index of a sparsity. Raises ValueError for one that is not known."""
        if sparsity not in self.sparsities:
            raise ValueError(
                f"the profile knows the sparsities {', '.join(f'{each:g}' for each in self.sparsities)}; "
                f"for {sparsity} call crisp.profile with sparsities=[{sparsity}]"
            )
        return self.sparsities.index(sparsity)


def allocate(pairs: np.ndarray, mass: np.ndarray, uniform: int) -> np.ndarray:
    """The grid index of every head, (N,), for no more pairs than all heads have at the index `uniform`.

    `pairs` and `mass` (N, G) are what each head keeps at each target sparsity, which rises along G.
    Pairs go where they add most mass (water-filling on the curves' concave hulls); where curves that
    are not concave would make that worse than uniform, the result is uniform.
    """
    budget = pairs[:, uniform].sum()
    chosen = _fill(pairs, mass, _along_hulls(pairs, mass, budget), budget)
    even = np.full(len(pairs), uniform)
    return chosen if _total(mass, chosen) >= _total(mass, even) else even


def sparsest(share: np.ndarray, least: float) -> np.ndarray:
    """The last grid index, (N,), up to which each head's share (N, G) of its mass is at least `least`, or 0."""
    return np.logical_and.accumulate(share >= least, axis=1).sum(axis=1).clip(min=1) - 1


def _along_hulls(pairs: np.ndarray, mass: np.ndarray, budget: float) -> np.ndarray:
    steps = []
    for head, (own_pairs, own_mass) in enumerate(zip(pairs.tolist(), mass.tolist(), strict=True)):
        hull = _hull(own_pairs, own_mass)
        for start, end in pairwise(hull):
            cost = own_pairs[end] - own_pairs[start]
            steps.append((_slope(own_pairs, own_mass, start, end), cost, head, end))
    chosen = np.full(len(pairs), pairs.shape[1] - 1)
    spent, stopped = _total(pairs, chosen), set()
    for _, cost, head, end in sorted(steps, key=lambda step: -step[0]):
        if head in stopped or spent + cost > budget:
            stopped.add(head)
            continue
        chosen[head] = end
        spent += cost
    return chosen


def _hull(pairs: list[float], mass: list[float]) -> list[int]:
    """Grid indices on the upper concave hull of one head's curve, from the fewest pairs to the most."""
    hull: list[int] = []
    for index in reversed(range(len(pairs))):
        if hull and pairs[index] <= pairs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(pairs, mass, hull[-1], index) > _slope(pairs, mass, *hull[-2:]):
            hull.pop()
        hull.append(index)
    return hull


def _fill(pairs: np.ndarray, mass: np.ndarray, chosen: np.ndarray, budget: float) -> np.ndarray:
    """Spend what the hulls' steps left over: again and again the change that fits and adds most mass."""
    heads = np.arange(len(pairs))
    while True:
        gain = mass - mass[heads, chosen][:, None]
        cost = pairs - pairs[heads, chosen][:, None]
        gain[cost > budget - _total(pairs, chosen)] = 0
        head, index = np.unravel_index(gain.argmax(), gain.shape)
        if gain[head, index] <= 0:
            return chosen
        chosen[head] = index


def _slope(pairs: list[float], mass: list[float], start: int, end: int) -> float:
    return (mass[end] - mass[start]) / (pairs[end] - pairs[start])


def _total(values: np.ndarray, chosen: np.ndarray) -> float:
    return values[np.arange(len(values)), chosen].sum()
