"""The process of one run."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crisp_attention.errors import CheckpointError, OptionError, Shortage, first_line, shortage
from crisp_attention.runs.finetune import carry_out
from crisp_attention.runs.run_directory import OWN, RunDirectory, check_resuming, newest_checkpoint
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.terminal import be_quiet, replace_unencodable

SECONDS = 0.5  # between two messages of a run's progress


class Place(NamedTuple):
    """Where a run works: its number of threads, the GPU it may use (None: any), its log and lock files."""

    threads: int
    device: str | None
    log: Path
    lock: Path


class Asked(NamedTuple):
    """The job of a process: a run, in its folder, for the study that this command made."""

    spec: RunSpec
    output: Path
    keep_model: bool
    command: tuple[str, ...]


def work(asked: Asked, place: Place, pipe: Connection) -> None:
    """Do the run, or what is left of it, as soon as no other process works on it; its output goes to its log.

    Sends what `Reporter` sends, and at last ("done", metrics), ("full", reason) if no space is left on
    the device, or ("failed", reason).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which then ends its runs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.current_process().daemon = False  # a run may have processes that load its data
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device
    torch.set_num_threads(place.threads)
    be_quiet()
    sys.argv = list(asked.command)
    try:
        _write_to(place.log)
        with FileLock(place.lock):
            pipe.send(("done", _run(asked, pipe)))
    except BaseException as error:  # whatever it is, the study continues and reports it
        pipe.send(("full" if shortage(error) is Shortage.DISK else "failed", first_line(error)))
        with suppress(OSError):  # the disk of the log may be full
            traceback.print_exc()
            sys.stderr.flush()


def _run(asked: Asked, pipe: Connection) -> dict[str, Any]:
    directory = RunDirectory(asked.output)
    resume = overwrite = False
    if directory.config.is_file():
        resume = True
        try:
            check_resuming()
            newest_checkpoint(directory.checkpoints)
        except (CheckpointError, OptionError):
            if not directory.complete:
                resume, overwrite = False, True
    elif not directory.complete and _is_own(directory.path):
        shutil.rmtree(directory.path)  # it ended before its configuration was written
    return carry_out(
        asked.spec,
        asked.output,
        callbacks=[Reporter(pipe)],
        resume=resume,
        overwrite=overwrite,
        keep_model=asked.keep_model,
    ).metrics


class Reporter(TrainerCallback):
    """Sends ("step", done, all) now and then, and ("scores", step, all, scores by name) at each evaluation."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self._sent = pipe, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if time.monotonic() - self._sent > SECONDS:
            self._sent = time.monotonic()
            self.pipe.send(("step", state.global_step, state.max_steps))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scores = {name.removeprefix("eval_"): value for name, value in kwargs["metrics"].items()}
        self.pipe.send(("scores", state.global_step, state.max_steps, scores))


def _is_own(folder: Path) -> bool:
    return folder.is_dir() and all(OWN.fullmatch(each.name) for each in folder.iterdir())


def _end_with_parent() -> None:
    """End with the worker: another one that takes over its runs must be the only process working on them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            replace_unencodable(stream, encoding="utf-8")
            if stream is not None:
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
