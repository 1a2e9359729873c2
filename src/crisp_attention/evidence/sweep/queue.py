"""Who works on which run. A run is a trial of the Optuna study; its name is unique in it."""

import os
import platform
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from crisp_attention.evidence.sweep.storage import Storage

RUN, WORKER, REASON = "run", "worker", "reason"
LIVE = (TrialState.WAITING, TrialState.RUNNING)
CLOCK_SECONDS = 120  # the start of a process is known by a clock that may be set meanwhile


@dataclass(frozen=True)
class Planned:
    """A run that the study shall have: its name, and what Optuna may not choose."""

    name: str
    fixed: Mapping[str, Any]


class Queue:
    """The runs of a study: claimed by one worker each, given back when it dies, never finished twice."""

    def __init__(self, storage: Storage, study: optuna.Study) -> None:
        self.storage, self.study = storage, study

    def claim(self, planned: list[Planned]) -> optuna.Trial | None:
        """Take a run that nobody has; None if all are taken or finished.

        Runs of dead workers, and planned runs that are in no queue yet, are queued first.
        """
        with self.storage.locked(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Optuna's: that heartbeats are experimental, and meant for optimize()
            self._give_back_what_died()
            known = self.states()
            for each in planned:
                if each.name not in known:
                    fixed = {**each.fixed, **self._begun(each.name)}
                    self.study.enqueue_trial(fixed, user_attrs={RUN: each.name})
            if TrialState.WAITING not in self.states().values():
                return None
            trial = self.study.ask()
            self.beat(trial)
            trial.set_user_attr(WORKER, _here() | {"pid": os.getpid(), "started": _started(os.getpid())})
            return trial

    def states(self) -> dict[str, TrialState]:
        """The state of every run that waits, runs or has ended; one that was given back is not in it."""
        return {
            trial.user_attrs[RUN]: trial.state
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL or REASON in trial.user_attrs
        }

    def live(self) -> Counter[TrialState]:
        """How many runs wait, and how many run, on all machines."""
        return Counter(state for state in self.states().values() if state in LIVE)

    def beat(self, trial: optuna.Trial) -> None:
        """Say that the run's worker is alive."""
        self.storage.optuna.record_heartbeat(trial._trial_id)

    def finish(self, trial: optuna.Trial, value: float) -> None:
        """The run is done."""
        self.study.tell(trial, value)

    def prune(self, trial: optuna.Trial) -> None:
        """The run was stopped as hopeless."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """The run cannot be done; it is not tried again unless `retry` is called."""
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def give_back(self, trial: optuna.Trial) -> None:
        """Somebody else, or this worker later, shall do the run."""
        self.study.tell(trial, state=TrialState.FAIL)

    def retry(self) -> None:
        """Queue all failed runs again."""
        with self.storage.locked():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
                if REASON in trial.user_attrs and self.states()[trial.user_attrs[RUN]] == TrialState.FAIL:
                    self.study.enqueue_trial(trial.params, user_attrs={RUN: trial.user_attrs[RUN]})

    def _begun(self, name: str) -> dict[str, Any]:
        """What Optuna chose for the run when it was begun before: it shall continue, not be another."""
        trials = self.study.get_trials(deepcopy=False)
        return next((t.params for t in reversed(trials) if t.user_attrs[RUN] == name and t.params), {})

    def _give_back_what_died(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_dead(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
        optuna.storages.fail_stale_trials(self.study)


def _is_dead(trial: FrozenTrial) -> bool:
    """Whether the worker is a process of this machine that is no more; of others the heartbeat tells."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # it died inside the lock that we now have
        return True
    here = _here()
    if {key: worker[key] for key in here} != here:
        return False
    started = _started(worker["pid"])
    return started is None or abs(started - worker["started"]) > CLOCK_SECONDS


def _here() -> dict[str, str]:
    """What tells apart the places whose process numbers mean something to each other."""
    boot, names = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "processes": os.readlink(names) if names.is_symlink() else "",
    }


def _started(pid: int) -> float | None:
    """When the process began; None if it is no more."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
