"""Dividing a number of pairs among heads, so that they keep as much mass as they can together."""

from itertools import pairwise

import numpy as np


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
