"""The queue of runs. A run is a trial of the Optuna study; its name is unique in it."""

import os
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from crisp_attention.studies.sweep.storage import Storage

RUN, WORKER, FOLDER, REASON = "run", "worker", "folder", "reason"
LIVE = (TrialState.WAITING, TrialState.RUNNING)
CLOCK_SECONDS = 120  # the clock behind a process's start time may be set meanwhile


@dataclass(frozen=True)
class Planned:
    """A planned run: its name, and its attributes in the storage."""

    name: str
    known: Mapping[str, Any] = field(default_factory=dict)


class Queue:
    """The runs of a study: claimed by one worker each, given back when it dies, never finished twice."""

    def __init__(self, storage: Storage, study: optuna.Study) -> None:
        self.storage, self.study = storage, study

    def claim(self, planned: list[Planned]) -> optuna.Trial | None:
        """Take a run that no worker has; None if all are taken or finished.

        Runs of dead workers, and planned runs that are in no queue yet, are queued first.
        """
        with self.storage.locked(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's: that heartbeats are meant for optimize()
            self._give_back_what_died()
            known, begun = self.states(), self._begun()
            for each in planned:
                if each.name not in known:
                    self.study.enqueue_trial(
                        begun.get(each.name, {}), user_attrs={RUN: each.name, **each.known}
                    )
            if TrialState.WAITING not in self.states().values():
                return None
            trial = self.study.ask()
            self.beat(trial)
            trial.set_user_attr(WORKER, _here() | {"pid": os.getpid(), "started": _started(os.getpid())})
            return trial

    def states(self) -> dict[str, TrialState]:
        """The state of every run that waits, runs or has ended; one that was given back is not in it."""
        last = {trial.user_attrs[RUN]: trial for trial in self.study.get_trials(deepcopy=False)}
        return {
            name: trial.state
            for name, trial in last.items()
            if trial.state != TrialState.FAIL or REASON in trial.user_attrs
        }

    def values(self) -> dict[str, float]:
        """The validation score of every finished run."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {trial.user_attrs[RUN]: trial.value for trial in trials if trial.value is not None}

    def begin(self, trial: optuna.Trial, folder: Path) -> None:
        """Record where the run's folder is."""
        trial.set_user_attr(FOLDER, str(folder.resolve()))

    def redo_lost(self) -> None:
        """Queue again what this machine has finished and whose folder is gone."""
        with self.storage.locked():
            states = self.states()
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                name, folder = trial.user_attrs[RUN], trial.user_attrs.get(FOLDER)
                if (
                    folder
                    and _is_here(trial)
                    and states[name] == TrialState.COMPLETE
                    and not Path(folder).is_dir()
                ):
                    self.study.enqueue_trial(trial.params, user_attrs={RUN: name})

    def beat(self, trial: optuna.Trial) -> bool:
        """Record a heartbeat of the run's worker; False if it was taken for dead and has lost the run."""
        if self.storage.optuna.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return False
        self.storage.optuna.record_heartbeat(trial._trial_id)
        return True

    def finish(self, trial: optuna.Trial, value: float) -> None:
        """The run is done."""
        self.study.tell(trial, value, skip_if_finished=True)

    def prune(self, trial: optuna.Trial) -> None:
        """The run was pruned."""
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """The run cannot be done; it is not tried again unless `retry` is called."""
        with suppress(UpdateFinishedTrialError):  # another worker has taken it over
            trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def give_back(self, trial: optuna.Trial) -> None:
        """Leave the run to another worker, or to this one later."""
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def retry(self) -> None:
        """Queue all failed runs again."""
        with self.storage.locked():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
                if REASON in trial.user_attrs and self.states()[trial.user_attrs[RUN]] == TrialState.FAIL:
                    self.study.enqueue_trial(trial.params, user_attrs={RUN: trial.user_attrs[RUN]})

    def _begun(self) -> dict[str, dict[str, Any]]:
        """What Optuna chose for runs that were begun before: they continue with it."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs[RUN]: trial.params for trial in trials if trial.params}

    def _give_back_what_died(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_dead(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
        optuna.storages.fail_stale_trials(self.study)


def _is_dead(trial: FrozenTrial) -> bool:
    """Whether the worker is a process of this machine that has ended; for others, see the heartbeat."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # it died inside the lock that we now have
        return True
    if not _is_here(trial):
        return False
    started = _started(worker["pid"])
    return started is None or abs(started - worker["started"]) > CLOCK_SECONDS


def _is_here(trial: FrozenTrial) -> bool:
    here, worker = _here(), trial.user_attrs[WORKER]
    return {key: worker[key] for key in here} == here


def _here() -> dict[str, str]:
    """An id of the place, such as a machine or container, whose process ids are comparable."""
    boot, names = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "processes": os.readlink(names) if names.is_symlink() else "",
    }


def _started(pid: int) -> float | None:
    """When the process began; None if it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
