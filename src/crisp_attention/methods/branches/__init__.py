"""Branches: what is added to the output of the rule. For one of your own, derive from `Branch`."""

from crisp_attention.methods.branches.base import Attended, Branch
from crisp_attention.methods.branches.linear import Linear

# in the order in which they are listed
ALL: tuple[type[Branch], ...] = (Linear,)

__all__ = ["ALL", "Attended", "Branch", "Linear"]
