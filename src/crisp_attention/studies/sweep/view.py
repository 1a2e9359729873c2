"""The progress of a sweep: every run of every configuration, and the time left."""

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from statistics import mean
from types import TracebackType

from optuna.trial import TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crisp_attention.runs.task.metrics import Metric
from crisp_attention.studies.sweep.pool import Job

WAITS, DONE, FAILED, ELSEWHERE, PRUNED = "·", "●", "✗", "◌", "–"


class View:
    """A live table on a terminal, elsewhere a line per finished run. A context manager.

    rows: for every label the names of its runs.
    metric: how runs are judged.
    states, scores: of the runs of all workers, by name; scores are those on validation.
    """

    def __init__(self, console: Console, rows: Mapping[str, list[str]], metric: Metric) -> None:
        self.console, self.rows, self.metric = console, dict(rows), metric
        self.states: Mapping[str, TrialState] = {}
        self.scores: dict[str, float] = {}
        self.progress: dict[str, float] = {}
        self._seconds: list[float] = []
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self.render, transient=True)

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def step(self, job: Job, done: int, steps: int) -> None:
        """A run made progress."""
        self.progress[job.name] = done / max(steps, 1)

    def ended(self, job: Job, score: float) -> None:
        """A run is finished, with this score on validation."""
        self._seconds.append(time.monotonic() - job.began)
        self.progress.pop(job.name, None)
        self.scores[job.name] = score
        if not self.console.is_terminal:
            self.say(
                f"{job.name}: validation {self.metric.title} {self.metric.shown(score)} ({self._summary()})"
            )

    def gone(self, job: Job, why: str) -> None:
        """A run has ended without a result, and why."""
        self.progress.pop(job.name, None)
        self.say(f"{job.name}: {why}")

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> Group:
        """The table as it is now."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("attention")
        table.add_column("runs")
        table.add_column(f"validation {self.metric.title}", justify="right")
        for label, names in self.rows.items():
            done = [self.scores[name] for name in names if name in self.scores]
            cells = Text(" ").join(self._cell(name) for name in names)
            table.add_row(label, cells, self.metric.shown(mean(done)) if done else "")
        return Group(table, Text(self._summary()))

    def _cell(self, name: str) -> Text:
        progress, state = self.progress.get(name), self.states.get(name)
        if progress is not None:
            return Text(f"{progress:.0%}", style="cyan")
        if name in self.scores or state == TrialState.COMPLETE:
            return Text(DONE, style="green")
        if state == TrialState.FAIL:
            return Text(FAILED, style="red")
        if state == TrialState.PRUNED:
            return Text(PRUNED)
        return Text(ELSEWHERE if state == TrialState.RUNNING else WAITS, style="dim")

    def _summary(self) -> str:
        counts = Counter(self.states.values())
        done, failed = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED], counts[TrialState.FAIL]
        running = counts[TrialState.RUNNING]
        parts = [f"{done} of {sum(map(len, self.rows.values()))} runs done", f"{running} running"]
        parts += [f"{failed} failed"] if failed else []
        sign = 1 if self.metric.higher_is_better else -1
        best = max(self._candidates(), key=lambda each: sign * each[1], default=None)
        parts += [f"best so far {best[0]} ({self.metric.shown(best[1])} on validation)"] if best else []
        return ", ".join([*parts, *self._left(max(running, 1))])

    def _candidates(self) -> list[tuple[str, float]]:
        """Each row's mean; of a search, which is one row, each run."""
        if len(self.rows) == 1:
            return list(self.scores.items())
        found = {
            label: [self.scores[n] for n in names if n in self.scores] for label, names in self.rows.items()
        }
        return [(label, mean(values)) for label, values in found.items() if values]

    def _left(self, running: int) -> list[str]:
        if not self._seconds:
            return []
        ended = sum(state.is_finished() for state in self.states.values())
        to_do = sum(map(len, self.rows.values())) - ended - sum(self.progress.values())
        left = max(0.0, mean(self._seconds) * to_do / running)
        return [f"about {timedelta(seconds=round(left))} left"]
