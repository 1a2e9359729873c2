"""Pruning weights for the classes that a user needs (CRISP, arXiv 2311.14272), which is not about attention."""

from crisp_attention.pruning.compressed import BlockLinear, compress
from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.steps import masks_of, step

__all__ = ["BlockLinear", "Masks", "compress", "masks_of", "step"]
