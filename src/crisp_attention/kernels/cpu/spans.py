"""The valid keys of an example, which are counted from the first one, and how many of them a query may see."""

import numpy as np

from crisp_attention.kernels.cpu.native import compiled, floats_at, indices_at


@compiled
def bounds(job, batch):
    """The first valid key of an example, and the one after the last."""
    if job.spans == 0:
        return np.int64(0), job.keys
    span = indices_at(job.spans + 8 * batch)
    begin = min(max(np.int64(span[0]), 0), job.keys)
    return begin, max(min(np.int64(span[1]), job.keys), begin)


@compiled
def end_of(job, i, begin, end):
    """How many keys query i may see at most."""
    return max((min(end, i + job.first_query + 1) if job.causal else end) - begin, 0)


@compiled
def own_of(job, i, begin, end):
    """Which of the valid keys is that of query i's own token, -1 if it precedes them."""
    own = min(i + job.keys - job.queries, end - 1)
    return max((min(own, i + job.first_query) if job.causal else own) - begin, -1)


@compiled
def keys_of(job, batch, group):
    """Where the valid keys of a head begin."""
    begin, _ = bounds(job, batch)
    return floats_at(job.key + 4 * (batch * job.key_batch + group * job.key_head + begin * job.key_row))


@compiled
def values_of(job, batch, group):
    """Where their values begin."""
    begin, _ = bounds(job, batch)
    return floats_at(
        job.value + 4 * (batch * job.value_batch + group * job.value_head + begin * job.value_row)
    )
