"""Working on a queue until nothing is left: claim, run, record."""

import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from crisp_attention.errors import OptionError
from crisp_attention.files import write_json
from crisp_attention.studies.folder import failure_file
from crisp_attention.studies.sweep.child import Asked
from crisp_attention.studies.sweep.pool import Job, Message, Pool
from crisp_attention.studies.sweep.queue import LIVE, Planned, Queue
from crisp_attention.studies.sweep.storage import HEARTBEAT_SECONDS
from crisp_attention.studies.sweep.view import View

LOOK_SECONDS = 2.0
FREE_BYTES = 2**22  # with less, a failure is blamed on the full disk and not on the run
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
Starter = Callable[[optuna.Trial], Asked]


class Campaign:
    """One worker process at work on the planned runs of a study, together with others or alone."""

    def __init__(self, queue: Queue, pool: Pool, view: View, start: Starter, *, pruned: bool = False) -> None:
        """`start` gives the job of a claimed run; `pruned` stops runs that the study's pruner rejects."""
        self.queue, self.pool, self.view, self.start, self.pruned = queue, pool, view, start, pruned
        self._trials: dict[str, optuna.Trial] = {}
        self._asked: dict[str, Asked] = {}

    def work(self, planned: list[Planned]) -> None:
        """Return when every planned run has ended, here or elsewhere.

        If this ends early, the runs in progress here are given back. Raises OptionError if the disk is
        full or the storage does not answer, SystemExit when a signal ends the process.
        """
        with _ended_by_the_system(), self.queue.storage.answering():
            try:
                self._work(planned)
            except OSError as error:
                raise OptionError(
                    f"{error}; the study is intact: run the same command again to continue"
                ) from error
            except SystemExit:
                self.view.say("stopped by a signal; run the same command again to continue")
                raise
            finally:
                self._give_back()

    def _work(self, planned: list[Planned]) -> None:
        looked = beaten = float("-inf")
        self.view.states = self.queue.states()
        if any(map(self._is_live, planned)):
            self.pool.get_ready()  # before a run is claimed, as there would be no heartbeat meanwhile
        while True:
            if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                self._beat()
            if self.pool.has_room and time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                self._beat()  # the clock stops while a computer sleeps
                while self.pool.has_room and self._claim(planned):
                    pass
                self.view.states, self.view.scores = self.queue.states(), self.queue.values()
                if not self.pool.jobs and not any(map(self._is_live, planned)):
                    return
            for job, message in self.pool.messages(LOOK_SECONDS if self.pool.has_room else 1.0):
                try:
                    self._hear(job, message)
                except UpdateFinishedTrialError:
                    self._lose(job)
                if job not in self.pool.jobs:
                    looked = float("-inf")

    def _is_live(self, run: Planned) -> bool:
        return self.view.states.get(run.name, TrialState.WAITING) in LIVE

    def _claim(self, planned: list[Planned]) -> bool:
        trial = self.queue.claim(planned)
        if trial is None:
            return False
        asked = self.start(trial)
        self.queue.begin(trial, asked.output)
        name = asked.output.name
        self._trials[name], self._asked[name] = trial, asked
        self.view.step(self.pool.start(name, asked), 0, 1)
        return True

    def _beat(self) -> None:
        for job in list(self.pool.jobs):
            if not self.queue.beat(self._trials[job.name]):
                self._lose(job)

    def _lose(self, job: Job) -> None:
        """Drop a run that was given to another worker because this one had no heartbeat, as while a computer sleeps."""
        self._trials.pop(job.name)
        if job in self.pool.jobs:
            self.pool.stop(job)
        self.view.gone(job, "another worker has taken it over")

    def _hear(self, job: Job, message: Message) -> None:
        kind, *what = message
        if kind == "step":
            self.view.step(job, *what)
        elif kind == "scores":
            self._judge(job, *what)
        elif kind == "done":
            metric = self.view.metric
            if (score := what[0]["validation"][metric.name]) is None:  # predictions are not finite
                score = -math.inf if metric.higher_is_better else math.inf
            failure_file(self._asked[job.name].output).unlink(missing_ok=True)
            self.queue.finish(self._trials.pop(job.name), score)
            self.view.states = self.queue.states()
            self.view.ended(job, score)
        else:
            self._failed(job, kind, *what)

    def _judge(self, job: Job, step: int, steps: int, scores: dict[str, float]) -> None:
        schedule, metric = self._asked[job.name].spec.schedule, self.view.metric
        ramp = 0.0 if schedule is None else schedule.end
        # earlier, slow starters would look too bad, and runs that are not yet sparse too good
        if not self.pruned or step < max(0.5, ramp) * steps:
            return
        score = scores[metric.name]
        trial = self._trials[job.name]
        trial.report(score, step)
        if trial.should_prune():
            self.pool.stop(job)
            self.queue.prune(self._trials.pop(job.name))
            shutil.rmtree(self._asked[job.name].output, ignore_errors=True)
            self.view.gone(job, f"pruned at step {step} of {steps} ({metric.shown(score)} on validation)")

    def _failed(self, job: Job, kind: str, reason: str) -> None:
        output = self._asked[job.name].output
        if kind == "full" or shutil.disk_usage(output.parent).free < FREE_BYTES:
            raise OptionError(
                f"no space is left for {output} ({reason}); the study is intact: free some space and run the "
                f"same command again"
            )
        failure = {"reason": reason, "log": str(self.pool.logs / f"{job.name}.log")}
        write_json(failure_file(output), failure)
        self.queue.fail(self._trials.pop(job.name), reason)
        self.view.gone(job, f"failed: {reason}; see its log {failure['log']}")

    def _give_back(self) -> None:
        for job in list(self.pool.jobs):
            self.pool.stop(job)
        with (
            suppress(OptionError),
            self.queue.storage.answering(),
        ):  # if this fails, the next worker notices that we ended
            for trial in self._trials.values():
                self.queue.give_back(trial)
        self._trials.clear()


@contextmanager
def _ended_by_the_system() -> Iterator[None]:
    """End as after Ctrl-C on signals of the system or of a lost terminal."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    heard = [each for each in ENDING if signal.getsignal(each) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {each: signal.signal(each, end) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
