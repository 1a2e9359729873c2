"""What the processes of the tests of the queue do."""

import multiprocessing
import platform
import threading
from pathlib import Path

import optuna
import sqlalchemy

from crisp_attention.studies.sweep import pool
from crisp_attention.studies.sweep.queue import Planned, Queue
from crisp_attention.studies.sweep.storage import GRACE_SECONDS, Storage

PLANNED = [Planned(f"run-{number}", {"number": number}) for number in range(3)]


def open_queue(
    folder: Path, url: str | None = None, grace: int = GRACE_SECONDS, study: str = "study"
) -> Queue:
    """The queue of the study of that name."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = Storage(url, folder, grace=grace)
    with storage.locked():
        found = storage.study(study)
    return Queue(storage, found)


def be_silent_for(queue: Queue, seconds: int) -> None:
    """All heartbeats in the study's SQLite file become older."""
    older = f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-{seconds} seconds')"
    with queue.storage.optuna.engine.begin() as connection:
        assert connection.execute(sqlalchemy.text(older)).rowcount


def started(target, *arguments):
    """A process that calls `target` with a pipe and the arguments, and this process's end of the pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(pool.PRELOADED)
    mine, its = context.Pipe()
    process = context.Process(target=target, args=(its, *arguments), daemon=True)
    process.start()
    its.close()
    return process, mine


def in_a_thread(target, *arguments):
    """The same in a thread of this process."""
    mine, its = multiprocessing.Pipe()
    thread = threading.Thread(target=target, args=(its, *arguments), daemon=True)
    thread.start()
    return thread, mine


def claim_all(pipe, folder: Path, planned: list[Planned]) -> None:
    """Claim and finish runs, as soon as the test says so, until there are none; send their names."""
    queue = open_queue(folder)
    pipe.send("ready")
    pipe.recv()
    names = []
    while trial := queue.claim(planned):
        names.append(trial.user_attrs["run"])
        queue.finish(trial, 0.5)
    pipe.send(names)


def claim_one(
    pipe, folder: Path, url: str | None = None, node: str | None = None, study: str = "study"
) -> None:
    """Claim a run, on a machine of that name, choose something for it, and stay."""
    if node is not None:
        platform.node = lambda: node
    trial = open_queue(folder, url, study=study).claim(PLANNED)
    trial.suggest_int("number", 0, 9)
    pipe.send((trial.user_attrs["run"], trial.suggest_float("chosen", 0, 1)))
    pipe.recv()


def hold_lock(pipe, folder: Path) -> None:
    """Enter the lock and stay."""
    with open_queue(folder).storage.locked():
        pipe.send("inside")
        pipe.recv()
