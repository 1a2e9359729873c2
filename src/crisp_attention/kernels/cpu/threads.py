"""Compiled functions: loading them, what they are told, and the threads that run them."""

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from struct import Struct
from threading import Thread, Timer, local
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crisp_attention.kernels.memory import by_rows

NUMBER = 8  # bytes of each field of a job
PATIENCE = 4.0  # seconds; from the cache on disk, kernels are there in less
Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


@cache
def loaded(name: str, function: str) -> Any:
    """A compiled function of one of this folder's modules."""
    text = "compiling a kernel for this CPU (%s): some ten seconds, once on this machine"
    notice = Timer(PATIENCE, logging.getLogger(__name__).warning, (text, name))
    notice.daemon = True
    notice.start()
    try:
        module = import_module(f"crisp_attention.kernels.cpu.{name}")
    finally:
        notice.cancel()
    return getattr(module, function)


def run(work: int, job: int, threads: int) -> None:
    """Call the function at address `work` with `job` from each of `threads` threads, and wait."""
    if threads == 1:
        Work(work)(job)
    elif _forked:
        # A child of fork has none of its parent's threads, and OpenMP waits for them for ever: only in a
        # thread that is new does it start others.
        _in_new_thread(lambda: _team()(work, job, threads))
    else:
        _team()(work, job, threads)


@cache
def _team() -> Callable[[int, int, int], None]:
    libraries = [*Path(torch.__file__).parent.glob("lib/libgomp*.so*")] if os.name == "posix" else []
    libraries += [*Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*.so*")]
    for library in libraries:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return lambda work, job, threads: parallel(work, job, threads, 0)
    return _python_threads


def _python_threads(work: int, job: int, threads: int) -> None:
    others = [Thread(target=Work(work), args=(job,)) for _ in range(threads - 1)]
    for other in others:
        other.start()
    Work(work)(job)
    for other in others:
        other.join()


def _in_new_thread(work: Callable[[], None]) -> None:
    thread = Thread(target=work)
    thread.start()
    thread.join()


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class Started(NamedTuple):
    """A job, the compiled function that works on it, and in how many threads."""

    job: "Job"
    work: Any
    threads: int


_open = local()


@contextmanager
def started() -> Iterator[list[Started]]:
    """Collects the jobs that this thread starts inside the block."""
    before = getattr(_open, "jobs", None)
    jobs: list[Started] = []
    _open.jobs = jobs
    try:
        yield jobs
    finally:
        _open.jobs = before


class Job:
    """The record of a call that its threads read, and the tensors that the addresses in it point to.

    Every address comes from here, of a tensor in the layout that compiled code expects: inputs that have
    another are copied, and everything is held until the job is done.
    """

    def __init__(self, kind: np.dtype) -> None:
        names, self._layout = _layout_of(kind)
        self._values: dict[str, float] = dict.fromkeys(names, 0)
        self.tensors: dict[str, Tensor] = {}
        self.tables: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> int:
        return int(self._values[name])

    def set(self, **numbers: float) -> None:
        """Enter numbers by name."""
        self._values.update(numbers)

    def strided(self, name: str, tensor: Tensor) -> None:
        """Enter a tensor (B, H, L, ·) by its address and the strides of all but its last dimension."""
        rows = by_rows(tensor)
        self.tensors[name] = rows
        self._values[name] = rows.data_ptr()
        for part, stride in zip(("batch", "head", "row"), rows.stride(), strict=False):
            self._values[f"{name}_{part}"] = stride

    def flat(self, name: str, tensor: Tensor) -> None:
        """Enter the address of a tensor that is read from end to end."""
        dense = tensor.contiguous()
        self.tensors[name] = dense
        self._values[name] = dense.data_ptr()

    def table(self, name: str, array: np.ndarray) -> None:
        """Enter the address of a numpy array."""
        self.tables[name] = array
        self._values[name] = array.ctypes.data

    def packed(self) -> bytes:
        """The numbers and addresses as compiled code reads them."""
        return self._layout.pack(*self._values.values())

    def offset(self, name: str) -> int:
        """Where a number or an address is in `packed`, in bytes."""
        return NUMBER * list(self._values).index(name)

    def start(self, work: Any, threads: int) -> None:
        """Call a compiled function with a record of all this from each of `threads` threads, and wait."""
        # at once: entering numbers into an array of numpy's takes longer than a small product
        record = ctypes.create_string_buffer(self._layout.size)
        self._layout.pack_into(record, 0, *self._values.values())
        run(work.address, ctypes.addressof(record), threads)
        if (jobs := getattr(_open, "jobs", None)) is not None:
            jobs.append(Started(self, work, threads))


@cache
def _layout_of(kind: np.dtype) -> tuple[tuple[str, ...], Struct]:
    names = kind.names or ()
    return names, Struct("".join("d" if kind[name] == np.float64 else "q" for name in names))
