"""The pairs that are visible whatever is predicted: a window, and the tokens at both ends."""

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.sight import Sight, Traits


def check_fixed(window: int, global_tokens: int) -> None:
    """Raise ValueError for a window that is not 0 or odd, or a number of global tokens that is none."""
    check_whole("window", window, 0)
    if window and window % 2 == 0:
        raise ValueError(f"window must be 0 or an odd whole number, got {window}")
    check_whole("global_tokens", global_tokens, 0)


def fixed(queries: Tensor, keys: Tensor, end: Tensor, window: int, global_tokens: int) -> Tensor:
    """Window and global tokens, of 1-based positions; those beyond the `end` are global."""
    near = (keys - queries).abs() <= window // 2 if window else torch.zeros_like(keys < queries)
    # rank 0: the query's own token precedes every valid key, so it is no token of the sequence
    first = (keys <= global_tokens) | ((queries > 0) & (queries <= global_tokens))
    return near | first | (keys > end) | (queries > end)


def fixed_pairs(rows: Rows, window: int, global_tokens: int) -> Tensor:
    """Those of tokens; the last ones are global as well where all queries see the same keys, as in encoders."""
    queries, count = rows.query_positions, rows.valid.sum(dim=-1, keepdim=True)
    # in causal attention every token is the last that its query sees
    end = torch.where((queries < count).any(dim=-2, keepdim=True), count - global_tokens, count)
    return fixed(queries, rows.key_positions, end, window, global_tokens)


def fixed_sight(traits: Traits, window: int, global_tokens: int, *, own: bool = False) -> Sight:
    """`fixed_pairs` and what is told by `traits`, and the query's own token if `own`."""
    reach = window // 2 if window else -1
    return Sight(max(reach, 0) if own else reach, global_tokens, global_tokens, traits)
