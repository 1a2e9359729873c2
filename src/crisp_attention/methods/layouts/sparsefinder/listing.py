"""Listing the pairs of tokens that have a group in common, without comparing every query with every key."""

import torch
from torch import Tensor

from crisp_attention.methods.rows import Rows


def members(joined: Tensor) -> Tensor:
    """The groups of tokens, bool (B, H, tokens, groups), listed: int64 (4, n) of example, head, token and group."""
    return joined.nonzero().T


def in_buckets(bucket: Tensor, size: int) -> Tensor:
    """The same of the bucket of every token in each coordinate, (B, H, tokens, r): as `groups.buckets` numbers them."""
    count = -(-bucket.shape[2] // size)
    in_one = (bucket >= 0).nonzero().T
    example, head, token, coordinate = in_one
    listed = torch.stack([example, head, token, coordinate * count + bucket[tuple(in_one)]])
    example, head, token, coordinate = (bucket < 0).nonzero().T.repeat_interleave(count, dim=1)
    every = torch.arange(count, device=bucket.device).repeat(len(example) // max(count, 1))
    return torch.cat([listed, torch.stack([example, head, token, coordinate * count + every])], dim=1)


def sharing(query: Tensor, key: Tensor) -> Tensor:
    """The pairs with a group in common, each once and in order, int64 (4, P): example, head, query and key.

    `query` and `key` say which of them are in which groups, as `members` does. Time and memory grow with the sum over
    groups of their queries times their keys.
    """
    if not query.shape[1] or not key.shape[1]:
        return query.new_empty(4, 0)
    heads, groups = (int(max(query[row].max(), key[row].max())) + 1 for row in (1, 3))
    queries, keys = (int(each[2].max()) + 1 for each in (query, key))
    of_query, of_key = ((each[0] * heads + each[1]) * groups + each[3] for each in (query, key))
    order = of_key.argsort()
    ordered = of_key[order]
    first = torch.searchsorted(ordered, of_query)
    count = torch.searchsorted(ordered, of_query, right=True) - first
    # the n-th key of a query's group is at the group's first place + n
    start = count.cumsum(0) - count
    place = torch.arange(int(count.sum()), device=count.device) - start.repeat_interleave(count)
    found = key[2][order[first.repeat_interleave(count) + place]]
    row = ((query[0] * heads + query[1]) * queries + query[2]).repeat_interleave(count)
    code = torch.unique(row * keys + found)
    row, key_of = code // keys, code % keys
    head, query_of = row // queries, row % queries
    return torch.stack([head // heads, head % heads, query_of, key_of])


def valid(rows: Rows, pairs: Tensor) -> Tensor:
    """Those of the pairs that are valid; a causal mask that was not written out is not written out for it."""
    example, head, query, key = pairs
    keep = torch.ones_like(query, dtype=torch.bool)
    if rows.causal:
        keep = key <= query + rows.first_query
    if (shown := rows.shown) is not None:
        keep &= shown.expand(*rows.query.shape[:3], rows.key.shape[2])[example, head, query, key]
    return pairs[:, keep]
