"""The forward pass of layouts that decide by numbers of tokens: a list of keys for each row, and their scores only."""

from numba import carray

from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.limits import choose
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_at,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import gather_sum
from crisp_attention.kernels.cpu.selection import padded
from crisp_attention.kernels.cpu.sighted_rows import has_ends, list_keys, listed_scores
from crisp_attention.kernels.cpu.spans import bounds, keys_of, values_of
from crisp_attention.kernels.cpu.weights import NAN, drop, weigh


@entry(JOB)
def forward(jobs):
    """Take tiles of queries until none is left."""
    job = carray(jobs, 1)[0]
    room = padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    seen, row = indices_at(scratch + 12 * room), floats_at(scratch + 16 * room)
    tiles = (job.queries + job.tile - 1) // job.tile
    item = next_item(jobs)
    while item < job.batch * job.heads * tiles:
        head, first = item // tiles % job.heads, item % tiles * job.tile
        batch = item // (tiles * job.heads)
        group = head // (job.heads // job.groups)
        begin, end = bounds(job, batch)
        ends = has_ends(job, begin, end)
        key = keys_of(job, batch, group)
        value = values_of(job, batch, group)
        for i in range(first, min(first + job.tile, job.queries)):
            at = (batch * job.heads + head) * job.queries + i
            norm = floats_at(job.norm + 8 * at)
            query = floats_at(
                job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row)
            )
            out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + i * job.out_row))
            found = list_keys(job, batch, head, i, begin, end, ends, seen, row, work)
            listed_scores(job, query, key, seen, found, row)
            count, threshold, tie = choose(job, row, found, index, kept, work, norm)
            floats_at(job.threshold)[at], indices_at(job.tie)[at] = threshold, tie
            weigh(job.rule, kept, count, norm)
            for t in range(count):
                index[t] = seen[index[t]]
            if job.dropout > 0:
                drop(work, index, count, job.dropout, job.seed, at)
                for t in range(count):
                    kept[t] *= work[t]
            gather_sum(out, value, job.value_row, index, kept, count, job.value_width, False)
            if norm[1] != norm[1]:
                for d in range(job.value_width):
                    out[d] = NAN
        item = next_item(jobs)
