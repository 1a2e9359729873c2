"""Rows of valid pairs, and what a layout shows of them by its definition."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.pairs import causal_mask
from crisp_attention.methods.rows import Rows
from tests import oracle
from tests.cases import normal

KEYS = 13  # no multiple of any block size drawn here
HEADS = 2
CPU = torch.device("cpu")


def padded(left: int, right: int, causal: bool = False) -> Tensor:
    """(1, 1, 13, 13): keys of padding are seen by nobody; the queries there have rows all the same."""
    place = torch.arange(KEYS)
    valid = ((place >= left) & (place < KEYS - right)).expand(1, 1, KEYS, KEYS)
    return valid & causal_mask(KEYS, KEYS, CPU) if causal else valid


# padded on either side, causal or not, and only the last queries of them
VALID = st.builds(
    lambda left, right, causal, queries: padded(left, right, causal)[..., -queries:, :],
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, KEYS),
)


def rows_of(valid: Tensor, heads: int = HEADS, seed: int = 0) -> Rows:
    """Rows with queries and keys of width 4, all heads with a key head of their own."""
    queries, keys = valid.shape[-2:]
    return Rows(normal(1, heads, queries, 4, seed=seed), normal(1, heads, keys, 4, seed=seed + 1), mask=valid)


def shown(layout: Layout, rows: Rows) -> Tensor:
    """The visible pairs (B, H, L, S)."""
    return layout.visible(rows).expand(*rows.query.shape[:3], -1)


def is_as_defined(layout: Layout, valid: Tensor) -> bool:
    """Whether the layout shows every query what the oracle says."""
    rows = rows_of(valid)
    seen = shown(layout, rows)[0]
    for h, i in np.ndindex(*seen.shape[:2]):
        query, key = rows.query[0, h].numpy(), rows.key[0, h].numpy()
        wanted = oracle.visible(i, valid[0, 0].numpy(), h, query, key, layout)
        if set(seen[h, i].nonzero().flatten().tolist()) != wanted:
            return False
    return True
