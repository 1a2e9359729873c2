"""What a rule keeps of a row: where its threshold lies, and what of the row lies there."""

import math

import numpy as np

from crisp_attention.kernels.cpu import plan, selection
from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.native import bits_of, compiled, floats_at, indices_at
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, LOWEST, kept_of, padded, spoiled
from crisp_attention.kernels.cpu.top_mass import fewest_with_mass
from crisp_attention.kernels.cpu.vectors import compact, survey
from crisp_attention.kernels.cpu.weights import NAN


@compiled
def surveyed(job, row, n, norm):
    """How many keys a row sees, 0 if none has weight, and the lowest, highest, mean and deviation of their scores.

    Writes `norm` but for a sum.
    """
    low, high, seen, broken, total, squares = survey(row, padded(n))
    # next to a sink, scores of -inf alone have no weight, as it takes all
    drowned = job.sinks != 0 and broken == 0 and high == LOWEST
    spoilt = spoiled(high, broken)
    norm[0], norm[1] = high, NAN if spoilt and not drowned else np.float32(0)
    number = np.float32(max(seen, 1))
    mean = total / number
    spread = np.float32(math.sqrt(max(squares / number - mean * mean, np.float32(0))))
    return np.int64(0 if spoilt else seen), low, high, mean, spread


@compiled
def limits(job, row, n, index, kept, work, norm):
    """Threshold and tie of a row, an infinite threshold where nothing is kept; writes `norm` but for a sum.

    N:M has a threshold for each group. In place of the row's it leaves a first guess at them, and the pace of the
    search as bits.
    """
    seen, low, high, mean, spread = surveyed(job, row, n, norm)
    threshold, tie = low, EVERYWHERE
    if seen == 0:
        return INFINITY, EVERYWHERE
    if job.rule == plan.TOPK or job.rule == plan.TOPK_TOPP:
        k = np.int64(indices_at(job.counts)[seen])
        if k < seen:
            hint = floats_at(job.hints + 8 * seen)
            threshold, tie = selection.kth_of_row(row, n, seen, k, low, high, mean, spread, hint, kept)
            if job.rule == plan.TOPK_TOPP:
                least, last = fewest_with_mass(row, n, job.mass, low, high, work, index, kept)
                if least < threshold or (least == threshold and last > tie):
                    threshold, tie = least, last
    elif job.rule == plan.TOPP:
        threshold, tie = fewest_with_mass(row, n, job.mass, low, high, work, index, kept)
    elif job.rule == plan.THRESHOLD:
        threshold = max(np.float32(high + np.float32(job.level)), low)
    elif job.rule == plan.NOFM:
        if job.m > LANES:
            threshold, pace = selection.hint_of(job.n, job.m, mean, spread, high)
            tie = bits_of(pace)
    elif job.rule == plan.ENTMAX15:
        threshold = max(high - np.float32(2), low)
    elif job.rule == plan.SPARSEMAX:
        threshold = max(high - np.float32(1), low)
    return threshold, tie


@compiled
def choose(job, row, n, index, kept, work, norm):
    """What the rule keeps of a row: its number, and `limits`; writes `index`, `kept` and `norm`."""
    threshold, tie = limits(job, row, n, index, kept, work, norm)
    count, threshold = take(job, row, n, threshold, tie, index, kept, work, norm)
    return count, threshold, tie


@compiled
def take(job, row, n, threshold, tie, index, kept, work, norm):
    """What lies within a row's limits: its number, and the threshold; writes `index`, `kept` and `norm`."""
    if threshold == INFINITY:
        return 0, threshold
    high = norm[0]
    count = kept_of(job, row, n, threshold, tie, index, kept)
    if job.rule == plan.ENTMAX15 or job.rule == plan.SPARSEMAX:
        norm[1] = selection.entmax_tau(job.rule, kept, count, high)
        scale = np.float32(2) if job.rule == plan.ENTMAX15 else np.float32(1)
        # a little below τ: what lies between weighs nothing
        threshold = max(threshold, high + scale * norm[1] - (abs(high) + np.float32(1)) * np.float32(1e-6))
        count = compact(row, padded(n), threshold, tie, index, kept)
    else:
        norm[1] = exponentials(work, kept, high, count)
    return count, threshold
