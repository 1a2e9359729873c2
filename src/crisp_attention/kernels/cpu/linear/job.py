"""What a call of linear attention hands to its threads."""

from crisp_attention.kernels.cpu.job import VERSION, strided
from crisp_attention.kernels.cpu.native import job_type

# `features` is the width of queries and keys and of what the feature map makes of them, `width` that of values. A
# launch works on the `pairs` key and value heads, counted over the batch, from `first` on. `marginal` are bytes
# (B, H, n, n). For these pairs `sums` holds Σ φ(k) v' and Σ φ(k) of every block of keys, and `chosen`, for every block
# of queries, their sums over the blocks that it chose. Gradients are written, or added to what is there if `add`.
LINEAR = job_type(
    *strided("query", "key", "value", "base", "out", "grad", "query_grad", "key_grad", "value_grad"),
    "heads",
    "groups",
    "tokens",
    "size",
    "features",
    "width",
    "map",
    "add",
    "first",
    "pairs",
    "lengths",
    "marginal",
    "sums",
    "chosen",
    "direct",
    "squares",
    "segments",
    "weighed",
    "weight",
    "bias",
    "weight_grad",
    "bias_grad",
    "scratch",
    "scratch_size",
    VERSION,
)
