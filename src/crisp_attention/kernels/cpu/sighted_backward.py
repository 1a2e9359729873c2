"""The backward pass of layouts that decide by numbers of tokens: lists and scores again, and all three gradients."""

from numba import carray

from crisp_attention.kernels.cpu import selection
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_at,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import gather_dot, gather_sum, scatter_add
from crisp_attention.kernels.cpu.selection import padded
from crisp_attention.kernels.cpu.sighted_rows import has_ends, list_keys, listed_scores
from crisp_attention.kernels.cpu.spans import bounds, keys_of, values_of
from crisp_attention.kernels.cpu.weights import drop, score_gradient, spoil, weigh


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    room = padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    seen, row = indices_at(scratch + 12 * room), floats_at(scratch + 16 * room)
    factor, shared = floats_at(scratch + 20 * room), job.heads // job.groups
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        begin, end = bounds(job, batch)
        ends = has_ends(job, begin, end)
        key = keys_of(job, batch, group)
        value = values_of(job, batch, group)
        key_grad = floats_at(job.key_grad + 4 * (item * job.keys + begin) * job.width)
        value_grad = floats_at(job.value_grad + 4 * (item * job.keys + begin) * job.value_width)
        for head in range(group * shared, (group + 1) * shared):
            # later rows see more: chunks take them in turn
            for i in range(item // (job.groups * job.batch), job.queries, job.chunks):
                at = (batch * job.heads + head) * job.queries + i
                norm = floats_at(job.norm + 8 * at)
                query = floats_at(
                    job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row)
                )
                grad = floats_at(
                    job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + i * job.grad_row)
                )
                query_grad = floats_at(
                    job.query_grad
                    + 4 * (batch * job.query_grad_batch + head * job.query_grad_head + i * job.query_grad_row)
                )
                found = list_keys(job, batch, head, i, begin, end, ends, seen, row, work)
                listed_scores(job, query, key, seen, found, row)
                threshold, tie = floats_at(job.threshold)[at], indices_at(job.tie)[at]
                count = selection.kept_of(job, row, found, threshold, tie, index, kept)
                weigh(job.rule, kept, count, norm)
                for t in range(count):
                    index[t] = seen[index[t]]
                gather_dot(work, grad, value, job.value_row, index, count, job.value_width)
                if job.dropout > 0:
                    drop(factor, index, count, job.dropout, job.seed, at)
                    for t in range(count):
                        work[t] *= factor[t]
                        factor[t] *= kept[t]
                    scatter_add(value_grad, job.value_width, index, factor, count, grad, job.value_width)
                else:
                    scatter_add(value_grad, job.value_width, index, kept, count, grad, job.value_width)
                score_gradient(job.rule, kept, work, count)
                for t in range(count):
                    work[t] *= job.scale
                gather_sum(query_grad, key, job.key_row, index, work, count, job.width, False)
                scatter_add(key_grad, job.width, index, work, count, query, job.width)
                if norm[1] != norm[1]:
                    spoil(seen, found, query_grad, key_grad, value_grad, job.width, job.value_width)
        item = next_item(jobs)
