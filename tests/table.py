"""The table of methods: one row puts a method through every test that is about methods."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from crisp_attention import (
    LSH,
    BigBird,
    BlockTopK,
    Dense,
    Entmax,
    Method,
    NofM,
    RandomK,
    RandomPairs,
    Routing,
    Sparsefinder,
    SparseLinear,
    Strided,
    Threshold,
    TopK,
    TopKTopP,
    TopP,
    Window,
)
from crisp_attention.methods.method import AnyMethod
from crisp_attention.testing import calls
from tests import oracle


@dataclass(frozen=True)
class Row:
    """A method; the same with nothing dropped, which must be the model's own attention; and what the method means.

    `meaning` gives output and weights in float64, one row at a time; None for what is drawn.
    """

    method: Method
    dense: AnyMethod
    cross: bool = True  # works without positions, so in cross-attention too
    meaning: Callable[..., tuple[Tensor, Tensor]] | None = oracle.attention
    causal: bool = True  # works where a query must not see later tokens


ALL = Sparsefinder("distance", threshold="inf")
ROWS = {
    name: Row(calls.METHODS[name], *twin)
    for name, twin in {
        "dense": (Dense(),),
        "topk": (TopK(0.0),),
        "topk, 4": (TopK(keep=10**6),),
        "topk, sharper": (TopK(0.0, temperature=1),),
        "topk, learned temperature": (Dense(),),
        "topp": (TopP(1.0),),
        "topk_topp": (TopKTopP(0.99, mass=1.0),),
        "threshold": (Threshold(0.0),),
        "nofm": (NofM(3, 3),),
        "entmax": (Entmax(1.0),),
        "sparsemax": (Entmax(1),),
        "entmax 1.3": (Entmax(1.0),),
        "entmax, learned": (Entmax(1.0),),
        "random": (RandomK(0.0), False, None),
        "window": (Window(999), False),
        "window, dilated": (Window(999, dilation=1), False),
        "window+topk": (Method(Window(999), TopK(0.0)), False),
        "block_topk": (BlockTopK(0.0, block_size=2), False),
        "block_topk+entmax": (Method(BlockTopK(0.0), Entmax(1.0)), False),
        "sparse_linear": (SparseLinear(1.0, 0.0, 2), False),
        "sparse_linear, all": (SparseLinear(1.0, 0.0, 2), False),
        "sparse_linear, alpha": (SparseLinear(1.0, 0.0, 2, combine="alpha"), False),
        "bigbird": (BigBird(999), False),
        "strided": (Strided(1), False),
        "lsh": (LSH(1), False),
        "random_pairs": (RandomPairs(0.0), False),
        "routing": (Routing(clusters=1), False, None),
        "sparsefinder": (ALL, False, None),
        "sparsefinder, distance": (ALL, False, None),
        "sparsefinder, quantize": (ALL, False, None, False),
        "sparsefinder, blocks": (ALL, False, None, False),
    }.items()
}
# those that need no model to hold their parameters
METHODS = {name: row.method for name, row in ROWS.items() if not row.method.has_parameters}
