"""Run a compiled job on as many threads as torch uses: on torch's own, where it has OpenMP's from GNU.

Torch's threads spin for a while after each of its operations; others beside them would fight for the cores.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Thread

import torch

Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


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
