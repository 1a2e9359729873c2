"""The fewest scores of a row whose softmax weight reaches a mass: their threshold and tie."""

import math

import numpy as np

from crisp_attention.kernels.cpu.candidates import list_by_mass, masses_of
from crisp_attention.kernels.cpu.counts import mass_around
from crisp_attention.kernels.cpu.native import compiled, floats_of
from crisp_attention.kernels.cpu.selection import (
    EVERYWHERE,
    GUESSES,
    INFINITY,
    LOWEST,
    SQRT_TAU,
    between,
    halfway,
    normal_quantile,
    padded,
    share_of,
    tie_of,
)

ROUNDING = 1e-9
# lists of scores close to a guess before a search in the whole row
LISTS = 3
# over √n: the part of a row's mass on either side of the first guess that the first list takes
SLACK = 4.0


@compiled
def fewest_with_mass(row, n, mass, low, high, work, index, listed):
    """Threshold and tie of the fewest scores whose softmax weight reaches `mass`.

    The row is whole vectors, whose tail is -inf; `work`, `index` and `listed` have 16 slots more. The first guess is
    for weights that are normal, as those of normal scores are.
    """
    below, sum_, squares = masses_of(row, work, padded(n), high)
    enough, above, peak = (mass - ROUNDING) * below, 0.0, high
    if enough <= 1:  # the largest's own weight
        return high, tie_of(row, n, high, 1)
    masses = floats_of(index)
    mean = sum_ / below
    spread = math.sqrt(max(squares / below - mean * mean, 0))
    z = normal_quantile(mass)
    # in scores, for each unit of mass too much
    pace = spread * math.exp(z * z / 2) * SQRT_TAU / below
    middle, margin = high + mean + spread * z, SLACK / math.sqrt(n) * below * pace
    bottom, top = np.float32(middle - margin), np.float32(middle + margin)
    for _ in range(LISTS):
        if not (LOWEST < bottom < top < INFINITY):
            break
        held, number = list_by_mass(row, work, padded(n), bottom, top, listed)
        for t in range(number, padded(number)):
            listed[t] = -INFINITY
        more, _, _ = masses_of(listed, masses, padded(number), high)
        if held < enough <= held + more:
            middle = top - (top - bottom) * (enough - held) / more
            threshold, room = _search(
                listed, masses, number, held, enough, bottom, held + more, top, held, high, middle, pace
            )
            return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE
        pace = (top - bottom) / more if more > 0 else pace
        if held >= enough:
            low, below, middle = max(low, top), held, top + (held - enough) * pace
            bottom, top = top, np.float32(middle + (held - enough) * pace + margin)
        else:
            peak, above = min(peak, bottom), held + more
            middle = bottom - (enough - above) * pace
            bottom, top = np.float32(middle - (enough - above) * pace - margin), bottom
    threshold, room = _search(row, work, n, 0.0, enough, low, below, peak, above, high, middle, pace)
    return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE


@compiled
def _search(row, weight, n, before, enough, low, below, peak, above, high, middle, pace):
    """As for the k-th largest, with masses for counts, to which the mass `before` a list is added."""
    run, step = 0, 0
    middle = np.float32(middle)
    while low < peak:
        if step >= GUESSES:
            middle = between(low, peak, share_of(enough, above, below, run), step)
        if not (low < middle <= peak):
            middle = halfway(low, peak)
        _, least, greatest, held = mass_around(row, weight, n, middle)
        held += before
        if held >= enough:
            if held - _weight(least, high) < enough:
                return least, 0
            low, below, run = least, held, max(run, 0) + 1
        else:
            if held + _weight(greatest, high) >= enough:
                return greatest, 1
            peak, above, run = greatest, held, min(run, 0) - 1
        middle += np.float32((held - enough) * pace)
        step += 1
    return low, max(math.ceil((enough - above) / _weight(low, high)), 1)


@compiled
def _weight(score, high):
    return math.exp(np.float64(score) - np.float64(high))
