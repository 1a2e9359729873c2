"""Which kernels computed the attention of a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_recorders: list[set[str]] = []


@contextmanager
def recording() -> Iterator[set[str]]:
    """Collects the names of the kernels that compute attention inside the block, in any thread.

    A layer that a sparse model leaves to its own attention counts under that implementation's name
    (`sdpa`). Calls that are observed, as by `crisp.measuring`, and calls in compiled graphs are not seen.
    """
    used: set[str] = set()
    _recorders.append(used)
    try:
        yield used
    finally:
        _recorders[:] = [each for each in _recorders if each is not used]


def note(kernel: str) -> None:
    """Tell all open recordings that this kernel computed a call."""
    if _recorders and not torch.compiler.is_compiling():
        for used in _recorders:
            used.add(kernel)
