"""`crisp view`: the attention of a text as a page, what each method keeps and what it drops."""

from crisp_attention.view.command import run_view

__all__ = ["run_view"]
