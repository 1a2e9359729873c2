"""Which scores of a row are kept: a threshold, and where scores equal to it stop counting.

Kept are the scores above the threshold, and those equal to it up to the index `tie`.
"""

import math

import numpy as np

from crisp_attention.kernels.cpu.candidates import list_below, list_within, sums_about
from crisp_attention.kernels.cpu.counts import around, equal_places
from crisp_attention.kernels.cpu.groups import at_least, take_above, take_first
from crisp_attention.kernels.cpu.native import (
    bits_of,
    compiled,
    float_of,
    floats_after,
    indices_after,
    summing,
)
from crisp_attention.kernels.cpu.plan import ENTMAX15, NOFM
from crisp_attention.kernels.cpu.vectors import LANES, compact

INFINITY = np.float32(np.inf)
# what a score of -inf is entered as, so that it stays a key: -inf itself is a pair that is not valid
LOWEST = np.float32(np.finfo(np.float32).min)
HALF = np.float32(0.5)
# after this many counts another way of choosing the next begins
GUESSES, LINES = 2, 4
# after this many moves of the same bound, a search looks farther on
STALLED = 2
# counts in a group before the search that ends with equal scores too
TRIES = 12
# rows this short are searched without lists
SHORT = 256
# standard deviations: what lies farther from the mean is no normal score
TAIL = np.float32(6)
# times that a row with such tails is clipped before its mean and deviation are used
CLIPS = 2
SQRT_TAU = math.sqrt(math.tau)
NEWTON = 30
LARGEST = np.int32(2**31 - 1)
EVERYWHERE = LARGEST


@compiled
def padded(count):
    """The next multiple of a vector's lanes."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def finite(rows, stride, count, width):
    """Whether no number of some rows is NaN or infinite."""
    largest = np.int32(0)  # as bits, which have the order of the magnitudes
    for j in range(count):
        for d in range(width):
            largest = max(largest, np.int32(bits_of(rows[j * stride + d]) & LARGEST))
    return float_of(largest) < INFINITY


@compiled
def spoiled(high, broken):
    """Whether a row has no weights: it holds NaN (`broken` of them) or +inf, or its keys' scores are all -inf."""
    return broken > 0 or high == LOWEST or not high < INFINITY


@compiled
def floored(score):
    """A score of a valid pair, -inf as LOWEST; NaN stays."""
    return LOWEST if score < LOWEST else score


@compiled
def ordered(value):
    """The number of a float among all floats in their order."""
    bits = bits_of(value)
    return bits ^ ((bits >> np.int32(31)) & LARGEST)


@compiled
def unordered(number):
    """The inverse of `ordered`."""
    return float_of(number ^ ((number >> np.int32(31)) & LARGEST))


@compiled
def kth_largest(row, n, seen, k, low, high, guess, pace):
    """Threshold and tie of the k largest of `seen` scores that lie between `low` and `high`; k < seen.

    Looked for first at a `guess`, and `pace` further for each score too many.
    """
    none = np.int64(0)
    threshold, room = search(row, n, k, low, np.int64(seen), high, none, guess, pace, none, row)
    return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE


@compiled
def kth_of_row(row, n, seen, k, low, high, mean, spread, hint, listed):
    """`kth_largest` of a row of whole vectors, whose tail is -inf, by way of a list of scores close to it.

    `hint` are guess and pace for normal scores; `listed` has 16 slots more than the row.
    """
    few = seen // 4 if seen > SHORT else np.int64(0)
    for _ in range(CLIPS if few and max(high - mean, mean - low) > TAIL * spread else 0):
        mean, spread = _clipped(row, n, mean, spread + spread)
    guess, pace = mean + spread * hint[0], spread * hint[1]
    above, below, peak = np.int64(0), np.int64(seen), high
    if few and LOWEST < guess < INFINITY:
        # so far that about 4 √n scores of a normal row are between the bounds
        margin = np.float32(2 * math.sqrt(seen)) * pace
        bottom, top = guess - margin, guess + margin
        over, number = list_below(row, padded(n), bottom, top, listed)
        if over < k <= over + number:
            middle = top - (top - bottom) * np.float32((k - HALF - over) / number)
            threshold, room = search(
                listed, number, k - over, bottom, number, top, above, middle, pace, np.int64(0), listed
            )
            return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE
        if over >= k:
            low, below, guess = max(low, top), over, top + np.float32(over - k) * pace
        else:
            above, _, peak = around(row, n, bottom)  # of those below it the largest
            guess = bottom - np.float32(k - above) * pace
    threshold, room = search(row, n, k, low, below, peak, above, guess, pace, few, listed)
    return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE


@compiled
def _clipped(row, n, center, reach):
    """Mean and standard deviation of the scores no farther than `reach` from a center."""
    number, total, squares = sums_about(row, padded(n), center, reach)
    mean = total / np.float32(number)
    return center + mean, np.float32(
        math.sqrt(max(squares / np.float32(number) - mean * mean, np.float32(0)))
    )


@compiled
def search(row, n, k, low, below, peak, above, middle, pace, few, listed):
    """The k-th largest score of a row, and how many scores equal to it count, 0 for all of them.

    `below` scores, at least k, are at least `low`; `above`, fewer than k, are larger than `peak`. Counting, first at
    `middle` and `pace` further for each score too many, then where a straight line between the counts would have k:
    after a few steps on the floats' own numbers in every other one, as scores with heavy tails are even on these. The
    bounds move from score to score, so that equal scores end the search. Once a `few` scores are left between them,
    these are listed.
    """
    run, step = 0, 0
    while low < peak:
        if below - above <= few:
            _, n = list_within(row, padded(n), low, peak, listed)
            row, k, below, above, few = listed, k - above, n, np.int64(0), np.int64(0)
        if step >= GUESSES:
            middle = between(low, peak, share_of(k - HALF, above, below, run), step)
        if not (low < middle <= peak):
            middle = halfway(low, peak)
        count, least, greatest = around(row, n, middle)
        if count == k:
            return middle, np.int64(0)
        if count == k - 1:
            return greatest, np.int64(1)
        if count > k:
            low, below, run = least, count, max(run, 0) + 1
        else:
            peak, above, run = greatest, count, min(run, 0) - 1
        middle += np.float32(count - k) * pace
        step += 1
    return low, k - above


@compiled
def share_of(wanted, above, below, run):
    """How far down from the upper bound to look, as a part of the way to the lower one: by a straight line.

    One bound that has moved several times in a `run` is not near enough yet: then farther on.
    """
    share = np.float32((wanted - above) / (below - above))
    if run >= STALLED:
        return share * HALF
    return (share + np.float32(1)) * HALF if run <= -STALLED else share


@compiled
def between(low, peak, share, step):
    if step < LINES or step % 2 == 0:
        return peak - (peak - low) * share
    first, last = np.int64(ordered(low)), np.int64(ordered(peak))
    return unordered(np.int32(last - np.int64(np.float64(last - first) * share)))


@compiled
def halfway(low, peak):
    """A float above `low` and at most `peak`, in the middle of the floats between them."""
    first, last = np.int64(ordered(low)), np.int64(ordered(peak))
    return unordered(np.int32((first + last + 1) >> 1))


@compiled
def tie_of(row, n, value, room):
    """The index of the `room`-th score that equals `value`; EVERYWHERE if there are not as many."""
    for start in range(0, n, LANES):
        bits = equal_places(floats_after(row, start), value)
        place = start
        while bits:
            room -= bits & 1
            if room == 0:
                return np.int32(place)
            bits >>= 1
            place += 1
    return EVERYWHERE


@compiled
def normal_quantile(above):
    """Where a standard normal number lies above with this probability, to 0.0005 (Abramowitz and Stegun 26.2.23)."""
    t = math.sqrt(-2 * math.log(min(above, 1 - above)))
    top, bottom = 2.515517 + t * (0.802853 + t * 0.010328), 1 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    z = t - top / bottom
    return z if above < 0.5 else -z


@compiled
def entmax_tau(rule, kept, count, high):
    """τ of α-entmax, α = 1.5 or 2, over scores of which `high` is the largest, by Newton's method.

    The sum of weights is convex and falls with τ: from the left, every step stays on the left. τ of
    sparsemax is always taken from the scores alone, so that a score that equals it weighs nothing at all.
    """
    tau = np.float32(-1)
    for _ in range(NEWTON):
        if rule == ENTMAX15:
            surplus, slope = _entmax_sums(kept, count, high, tau)
            new = tau + np.float32((surplus - 1) / slope)
        else:
            total, support = _support_sums(kept, count, high, tau)
            new = np.float32((total - 1) / support)
        if not new > tau:  # there; what was rounded on the way is taken back
            return new
        tau = new
    return tau


@summing
def _entmax_sums(kept, count, high, tau):
    total, slope = np.float32(0), np.float32(0)
    for t in range(count):
        root = max((kept[t] - high) * HALF - tau, np.float32(0))
        total += root * root
        slope += root + root
    return total, slope


@summing
def _support_sums(kept, count, high, tau):
    total, support = np.float32(0), np.float32(0)
    for t in range(count):
        score = kept[t] - high
        total += score if score > tau else np.float32(0)
        support += np.float32(score > tau)
    return total, support


@compiled
def hint_of(n, m, mean, spread, high):
    """Where the n-th largest of m scores is if they are normal, and further for each score too many."""
    z = normal_quantile((n - HALF) / m)
    guess = np.float32(mean + spread * z)
    pace = np.float32(spread * math.exp(z * z / 2) * SQRT_TAU / m)
    return guess if guess < INFINITY else high, pace


@compiled
def _kth_of_group(row, n, k, guess, pace):
    """`kth_largest` of all n scores of a group: first a few counts alone, which cost less."""
    if k == n:
        return -INFINITY, EVERYWHERE
    low, peak, middle = -INFINITY, INFINITY, guess
    for _ in range(TRIES):
        count = at_least(row, n, middle)
        if count == k:
            return middle, EVERYWHERE
        low, peak = (middle, peak) if count > k else (low, middle)
        half = (low + peak) * HALF
        # until there are two bounds, by the density of scores
        middle = half if abs(half) < INFINITY else middle + np.float32(count - k) * pace
    _, least, _ = around(row, n, -INFINITY)
    _, _, greatest = around(row, n, INFINITY)
    return kth_largest(row, n, n, k, least, greatest, middle, pace)


@compiled
def n_of_m(row, count, n, m, guess, pace, index, kept):
    """Write the n largest of every m neighbours that are seen; of a short last group its share, rounded up.

    `guess` and `pace` as in `kth_largest`; they change nothing but the time it takes.
    """
    seen, names = at_least(row, count, LOWEST), index
    named = seen < count
    if named:  # what is seen side by side, behind the places that the first of it may be written to
        names, scores = indices_after(index, LANES), floats_after(kept, LANES)
        compact(row, padded(count), LOWEST, EVERYWHERE, names, scores)
        row = scores
    taken, end = np.int64(0), seen // m * m
    if m <= LANES:
        taken = take_first(row, names, named, 0, end, n, m, index, kept, taken)
        room = ((seen - end) * n + m - 1) // m
        return take_first(row, names, named, end, seen, room, m, index, kept, taken)
    for start in range(0, seen, m):
        size = min(m, seen - start)
        k = (size * n + m - 1) // m
        threshold, tie = _kth_of_group(floats_after(row, start), size, k, guess, pace)
        last = EVERYWHERE if tie == EVERYWHERE else np.int32(start + tie)
        taken = take_above(row, names, named, start, start + size, threshold, last, index, kept, taken)
    return taken


@compiled
def kept_of(job, row, n, threshold, tie, index, kept):
    """Write again what the forward pass kept of a row, whose tail is padded to whole vectors; returns how many."""
    if job.rule == NOFM:
        if threshold == INFINITY:
            return 0
        return n_of_m(row, n, job.n, job.m, threshold, float_of(tie), index, kept)
    return compact(row, padded(n), threshold, tie, index, kept)
