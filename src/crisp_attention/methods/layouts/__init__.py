"""Layouts: where a query may look, decided before the scores. One file per layout."""

from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.bigbird import BigBird
from crisp_attention.methods.layouts.block_topk import BlockTopK
from crisp_attention.methods.layouts.full import Full
from crisp_attention.methods.layouts.lsh import LSH
from crisp_attention.methods.layouts.random_pairs import RandomPairs
from crisp_attention.methods.layouts.routing import Routing
from crisp_attention.methods.layouts.sparsefinder import Sparsefinder
from crisp_attention.methods.layouts.strided import Strided
from crisp_attention.methods.layouts.window import Window

# in the order in which they are listed
ALL: tuple[type[Layout], ...] = (
    Full,
    Window,
    BlockTopK,
    BigBird,
    Strided,
    LSH,
    RandomPairs,
    Routing,
    Sparsefinder,
)

__all__ = [
    "ALL",
    "LSH",
    "BigBird",
    "BlockTopK",
    "Full",
    "Layout",
    "RandomPairs",
    "Routing",
    "Sparsefinder",
    "Strided",
    "Window",
]
