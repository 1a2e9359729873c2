"""The processes of a worker: each run has one of its own, so that a crash costs that run alone."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import Any

import torch

from crisp_attention.studies.sweep.child import Asked, Place, work

# glibc gives every large temporary back to the system at once; keeping them makes steps shorter
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
PRELOADED = ["crisp_attention.studies.sweep.child"]
END_SECONDS = 10.0
ENDS = ("done", "failed", "full")
Message = tuple[Any, ...]


@dataclass
class Job:
    """A run in its process."""

    name: str
    slot: int
    process: BaseProcess
    pipe: Connection
    began: float = field(default_factory=time.monotonic)
    ended: bool = False


class Pool:
    """Runs jobs side by side, cores and GPUs shared out among them."""

    def __init__(self, workers: int, logs: Path, command: tuple[str, ...]) -> None:
        """`command` is what the runs record as theirs."""
        self.workers, self.logs, self.command = workers, logs, command
        self.jobs: list[Job] = []
        self._threads = _threads(workers)
        self._devices = _devices()
        for name, value in {**KEEP_MEMORY, "OMP_NUM_THREADS": str(self._threads)}.items():
            os.environ.setdefault(name, value)
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        self._context.set_forkserver_preload(PRELOADED)  # so that not every run imports everything again

    def warm_up(self) -> None:
        """Begin to import what runs need, in the server that forks them, while this process continues."""
        if self._context.get_start_method() == "forkserver":
            from multiprocessing import forkserver  # not everywhere

            with _ctrl_c_is_ours():
                forkserver.ensure_running()

    def get_ready(self) -> None:
        """Wait until a process can be started without delay: the first one waits for all that is imported."""
        process = self._context.Process(target=os.getpid, daemon=True)
        with _ctrl_c_is_ours():
            process.start()
        process.join()

    @property
    def has_room(self) -> bool:
        """Whether another job may start."""
        return len(self.jobs) < self.workers

    def start(self, name: str, asked: Asked) -> Job:
        """Start a run in a process of its own."""
        slot = min(set(range(self.workers)) - {job.slot for job in self.jobs})
        device = self._devices[slot % len(self._devices)] if self._devices else None
        place = Place(self._threads, device, self.logs / f"{name}.log", self.logs / f".{name}.lock")
        mine, its = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(asked, place, its), name=name, daemon=True)
        with _ctrl_c_is_ours():
            process.start()
        its.close()
        job = Job(name, slot, process, mine)
        self.jobs.append(job)
        return job

    def messages(self, seconds: float) -> list[tuple[Job, Message]]:
        """The messages of the jobs, waiting at most that long; a job that has reported its end leaves the pool."""
        ready = {job.pipe for job in self.jobs} & set(wait([job.pipe for job in self.jobs], seconds))
        found = []
        for job in [each for each in self.jobs if each.pipe in ready]:
            try:
                message = job.pipe.recv()
            except (EOFError, OSError):  # OSError: it was ended in the middle of a message
                message = ("failed", _ending(_joined(job.process)))
            found.append((job, message))
            if message[0] in ENDS:
                self._remove(job)
        return found

    def stop(self, job: Job) -> None:
        """End a job at once."""
        job.process.kill()
        self._remove(job)

    def _remove(self, job: Job) -> None:
        _joined(job.process)
        job.pipe.close()
        self.jobs.remove(job)


@contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Keep Ctrl-C from processes started here, also while they import; the sweep ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    ensure_running()  # which, where it is not yet, lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _joined(process: BaseProcess) -> int | None:
    """The exit code of a process that has nothing left to do."""
    process.join(END_SECONDS)
    if process.is_alive():  # threads of other libraries may keep it from ending
        process.kill()
        process.join()
    return process.exitcode


def _threads(workers: int) -> int:
    """Each worker's share of the cores; no more than the user allows."""
    share, limit = max(1, _cores() // workers), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) else share


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{why}"
    return f"the process ended with exit code {code}"
