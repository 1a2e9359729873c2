"""The temperature of the scores: what every rule multiplies them by before it selects and weighs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number

LEARNED = "learned"
# Learned temperatures stay between 1 / HIGHEST and HIGHEST: sharper softmaxes are all but one-hot.
HIGHEST = 16.0
# Adam moves a parameter by about its learning rate. At 2e-5, a rate of fine-tuning, a thousand steps one way make this
# a factor of 1.6, where the logarithm itself would have changed by 2 %; at 1e-3, from scratch, one step is 2.5 %.
PACE = 25.0

Temperature = float | str


def check_temperature(value: object) -> None:
    """Raise TypeError or ValueError unless it is a positive number or "learned"."""
    if isinstance(value, str) and value != LEARNED:
        raise ValueError(f'temperature must be a positive number or "learned", got {value!r}')
    if value != LEARNED:
        check_number("temperature", value, "(0, inf)")


def factors(given: Sequence[Temperature], raw: Tensor | None, like: Tensor) -> Tensor:
    """The temperature of every head (H,), those that are learned from the layer's parameter `raw` (H,)."""
    learned = [each == LEARNED for each in given]
    fixed = like.new_tensor([1.0 if isinstance(each, str) else each for each in given], dtype=torch.float32)
    if raw is None:
        return fixed
    limit = math.log(HIGHEST)
    own = torch.exp(limit * torch.tanh(PACE / limit * raw.float()))
    return own if all(learned) else torch.where(torch.tensor(learned, device=own.device), own, fixed)
