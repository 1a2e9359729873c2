"""Keys that make rows of scores of several kinds: selection is not to depend on scores being normal."""

from functools import cache
from pydoc_data.topics import topics
from typing import Literal

import torch
from torch import Tensor

from crisp_attention.bench.predicted import TOKENS, states_from

Kind = Literal["normal", "ties", "8 levels", "one outlier", "heavy tails", "trained"]
NORMAL: Kind = "normal"
LEVELS: Kind = "8 levels"
TRAINED: Kind = "trained"
KINDS: tuple[Kind, ...] = ("ties", LEVELS, "one outlier", "heavy tails", TRAINED)
DISTINCT = 16  # keys, where there are ties
STEP = 0.5  # of eight levels
OUTLIER = 100.0  # times as large as the others
FREEDOM = 1.5  # degrees of Student's distribution


def drawn(kind: Kind, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """States (B, G, S, D) of a kind; those of a trained model are not drawn, but computed by it."""
    states = torch.randn(shape, generator=generator)
    if kind == "ties":
        return states[:, :, torch.randint(min(DISTINCT, shape[2]), (shape[2],), generator=generator)]
    if kind == LEVELS:
        return ((states / STEP).floor().clamp(-4, 3) + 0.5) * STEP
    if kind == "one outlier":
        states[:, :, shape[2] // 2] *= OUTLIER
    if kind == "heavy tails":
        chi = torch.distributions.Chi2(FREEDOM)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            states = states / (chi.sample((*shape[:3], 1)) / FREEDOM).sqrt()
    return states


def trained(length: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (1, H, L, D) of MiniLM's fourth layer for English text, laid end to end.

    Raises CheckpointError where the model is not installed.
    """
    query, key, value = _of_minilm(-(-length // TOKENS))
    return query[:, :heads, :length], key[:, :heads, :length], value[:, :heads, :length]


@cache
def _of_minilm(texts: int) -> tuple[Tensor, Tensor, Tensor]:
    words = " ".join(topics[name] for name in sorted(topics))  # the documentation of Python
    states = states_from(words, texts).laid(texts * TOKENS)
    return states.query, states.key, states.value
