"""Calls like an earlier one, as decoding makes them for every token, without planning them again.

Of two calls of the same kind a compiled function is told the same, but for where things lie.
"""

import ctypes
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.threads import Job, run, started
from crisp_attention.kernels.lightest import is_unwatched
from crisp_attention.methods.method import Method

MOST = 4096  # records that are kept, of about a kilobyte
ADDRESS = Struct("q")
STATES = "query", "key", "value"
ROOMS = "threshold", "tie", "norm", "scratch"


@dataclass(frozen=True)
class Record:
    """What a compiled function is told in calls of one kind, and where in it addresses are entered."""

    numbers: bytes
    offsets: tuple[int, ...]
    rooms: tuple[int, ...]
    room: int
    work: Any
    threads: int
    tables: list[Any]

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output (B, H, L, Dv)."""
        batch, heads, queries, _ = query.shape
        output = torch.empty(batch, queries, heads, value.shape[3], dtype=torch.float32, device="cpu")
        job = ctypes.create_string_buffer(self.numbers, len(self.numbers))
        room = torch.empty(self.room, dtype=torch.float32, device="cpu")
        first = room.data_ptr()
        addresses = (
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            output.data_ptr(),
            *[first + each for each in self.rooms],
        )
        for offset, address in zip(self.offsets, addresses, strict=True):
            ADDRESS.pack_into(job, offset, address)
        run(self.work.address, ctypes.addressof(job), self.threads)
        return output.transpose(1, 2)


_records: dict[Hashable, Record | None] = {}


def kind_of(call: Call, backend: str) -> Hashable | None:
    """What calls have in common that differ by numbers in their tensors alone; None where more decides on a call."""
    query, key, value, method = call.query, call.key, call.value, call.method
    if type(method) is not Method or method.branch is not None or method.uses_seed or call.parameters:
        return None
    more = call.valid, call.span, call.bias, call.sinks, call.dense, call.blocks
    if call.dropout or any(each is not None for each in more):
        return None
    if not query.dtype is key.dtype is value.dtype is torch.float32 or not is_unwatched((query, key, value)):
        return None
    if not (query.is_cpu and key.is_cpu and value.is_cpu):
        return None
    try:
        hash(method)
    except TypeError:  # options of someone's own that have none
        return None
    shapes = query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride()
    numbers = call.scale, call.causal, call.first_query, call.softcap, torch.get_num_threads()
    return backend, method, shapes, numbers


def find(kind: Hashable | None) -> Record | None:
    """The record of calls of this kind; None if there was none, or if they cannot be made from one."""
    return None if kind is None else _records.get(kind)


def forget() -> None:
    """Plan the next call of every kind again."""
    _records.clear()


@contextmanager
def remembering(kind: Hashable | None, call: Call) -> Iterator[None]:
    """Make a record of the call that is computed inside, if others of its kind can be made from that."""
    if kind is None or kind in _records:
        yield
        return
    with started() as jobs:
        yield
    if len(_records) >= MOST:
        _records.clear()
    _records[kind] = _record(call, *jobs[0]) if len(jobs) == 1 else None


def _record(call: Call, job: Job, work: Any, threads: int) -> Record | None:
    rooms = [name for name in ROOMS if name in job.tensors]
    states = call.query, call.key, call.value
    copied = any(
        job.tensors[name].data_ptr() != each.data_ptr() for name, each in zip(STATES, states, strict=True)
    )
    if copied or set(job.tensors) != {*STATES, "out", *rooms}:
        return None
    if job.tensors["out"].shape[-1] != call.value.shape[-1]:
        return None
    starts, room = [], 0
    for name in rooms:
        starts.append(4 * room)
        room += -(-job.tensors[name].numel() // LANES) * LANES
    offsets = tuple(map(job.offset, [*STATES, "out", *rooms]))
    return Record(job.packed(), offsets, tuple(starts), room, work, threads, list(job.tables.values()))
