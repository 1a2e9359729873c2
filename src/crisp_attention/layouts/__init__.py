"""Layouts: where a query may look, decided before the scores. One file per layout."""

from crisp_attention.layouts.base import Layout
from crisp_attention.layouts.full import Full
from crisp_attention.layouts.window import Window

__all__ = ["Full", "Layout", "Window"]
