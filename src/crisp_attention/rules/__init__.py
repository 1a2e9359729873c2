"""Rules: what a query keeps of the keys it sees. One file per rule."""

from crisp_attention.rules.base import Rule
from crisp_attention.rules.dense import Dense
from crisp_attention.rules.random import RandomK
from crisp_attention.rules.topk import TopK

__all__ = ["Dense", "RandomK", "Rule", "TopK"]
