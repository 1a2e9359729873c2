"""Rules: what a query keeps of the keys it sees. One file per rule."""

from crisp_attention.methods.rules.base import Rule
from crisp_attention.methods.rules.dense import Dense
from crisp_attention.methods.rules.entmax import Entmax
from crisp_attention.methods.rules.nofm import NofM
from crisp_attention.methods.rules.random import RandomK
from crisp_attention.methods.rules.threshold import Threshold
from crisp_attention.methods.rules.topk import TopK
from crisp_attention.methods.rules.topk_topp import TopKTopP
from crisp_attention.methods.rules.topp import TopP

# in the order in which they are listed
ALL: tuple[type[Rule], ...] = (Dense, TopK, TopP, TopKTopP, Threshold, NofM, Entmax, RandomK)

__all__ = ["ALL", "Dense", "Entmax", "NofM", "RandomK", "Rule", "Threshold", "TopK", "TopKTopP", "TopP"]
