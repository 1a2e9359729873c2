"""Branches: what is added to what the rule gives. There is none here yet: `Branch` is for others to derive."""

from crisp_attention.methods.branches.base import Branch

# what a method can be named by, in the order in which people are shown it
ALL: tuple[type[Branch], ...] = ()

__all__ = ["ALL", "Branch"]
