"""Layouts: where a query may look, decided before the scores. One file per layout."""

from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.block_topk import BlockTopK
from crisp_attention.methods.layouts.full import Full
from crisp_attention.methods.layouts.window import Window

# what a method can be named by, in the order in which people are shown it
ALL: tuple[type[Layout], ...] = (Full, Window, BlockTopK)

__all__ = ["ALL", "BlockTopK", "Full", "Layout", "Window"]
