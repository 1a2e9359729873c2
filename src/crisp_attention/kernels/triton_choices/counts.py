"""How many of so many are kept, in tables that are made once."""

from functools import lru_cache

import torch
from torch import Tensor

from crisp_attention.methods.ranking import share_count


@lru_cache(128)
def counts_of(sparsity: float, minimum: int, most: int, device: torch.device) -> Tensor:
    """`share_count` of 0 … `most`, int32 (most + 1,)."""
    with torch.inference_mode(False), torch.no_grad():  # a backward pass may need what inference made
        return share_count(torch.arange(most + 1, device=device), sparsity, minimum).int()
