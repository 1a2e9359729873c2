"""Calls like an earlier one, as decoding makes them for every token, without planning them again.

Of two calls of the same kind a kernel is told the same, but for where tensors lie.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from types import NoneType
from typing import Protocol

import torch
from torch import Tensor

from crisp_attention.kernels.call import Call
from crisp_attention.kernels.lightest import is_unwatched
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import is_ours

REPLAYED = "cpu"  # the kernel whose calls are worth it
MOST = 128  # replays that are kept; with its tables one takes up to 12 bytes for each key


class Replay(Protocol):
    """What serves all calls of a kind."""

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output (B, H, L, Dv)."""


_replays: dict[Hashable, Replay | None] = {}


def kind_of(call: Call, backend: str) -> Hashable | None:
    """What calls have in common that differ by numbers in their tensors alone; None where more decides on a call."""
    query, key, value, method = call.query, call.key, call.value, call.method
    if type(method) is not Method or method.branch is not None or method.uses_seed or call.parameters:
        return None
    if not (is_ours(type(method.layout)) and is_ours(type(method.rule))):  # others may go by anything
        return None
    if type(call.scale) is not float or type(call.softcap) not in (float, NoneType):  # as tensors have values
        return None
    more = call.valid, call.span, call.bias, call.sinks, call.dense, call.blocks
    if call.dropout or any(each is not None for each in more):
        return None
    if not query.dtype is key.dtype is value.dtype is torch.float32 or not is_unwatched((query, key, value)):
        return None
    if not (query.is_cpu and key.is_cpu and value.is_cpu):
        return None
    shapes = query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride()
    numbers = call.scale, call.causal, call.first_query, call.softcap, torch.get_num_threads()
    return backend, method, shapes, numbers


def find(kind: Hashable | None) -> Replay | None:
    """What serves calls of this kind; None if there was none, or if they cannot be made from one."""
    return None if kind is None else _replays.get(kind)


def forget() -> None:
    """Plan the next call of every kind again."""
    _replays.clear()


@contextmanager
def remembering(kind: Hashable | None, call: Call, kernel: str) -> Iterator[None]:
    """Keep what serves calls of this kind, from the one that a kernel computes inside, or that nothing does."""
    if kind is None or kind in _replays:
        yield
        return
    for oldest in list(_replays)[: max(0, len(_replays) + 1 - MOST)]:
        _replays.pop(oldest, None)
    if kernel != REPLAYED:
        yield
        _replays[kind] = None
        return
    from crisp_attention.kernels.cpu.record import capturing  # not before the CPU kernel is used

    with capturing(call) as found:
        yield
    _replays[kind] = found[0] if found else None
