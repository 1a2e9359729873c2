"""Branches: what is added to the output of the rule. None is built in yet: derive your own from `Branch`."""

from crisp_attention.methods.branches.base import Branch

# in the order in which they are listed
ALL: tuple[type[Branch], ...] = ()

__all__ = ["ALL", "Branch"]
