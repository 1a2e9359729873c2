"""Feature maps of linear attention: what stands for exp(query · key) there."""

from collections.abc import Callable

import torch
from torch import Tensor

# none of their entries is negative, so that sums of products weigh
FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda states: states.softmax(dim=-1),
    "elu": lambda states: torch.nn.functional.elu(states) + 1,
    "relu": torch.relu,
    "hedgehog": lambda states: torch.cat([states, -states], dim=-1).softmax(dim=-1),  # of projected states
}
LEARNED = "hedgehog"
