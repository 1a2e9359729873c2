"""Small sweeps, here or in processes of their own, that can be disturbed, and what they leave."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import optuna
import pandas as pd
import psutil
from rich.console import Console

import crisp_attention as crisp
from crisp_attention.runs.spec import Data
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import Plan, planned
from crisp_attention.studies.sweep.storage import DATABASE
from crisp_attention.studies.sweep.sweep import Work, carry_out

SECONDS = 400  # a process starts within seconds, but cores may be busy with other things
TIMES = {"seconds_per_step", "train_seconds", "peak_memory_bytes"}
Found = TypeVar("Found")


def small_plan(bert: str, reviews: str, seeds: int, epochs: int) -> Plan:
    """The study of a `Worker`."""
    recipe = crisp.Recipe(epochs=epochs, batch_size=8, learning_rate=1e-2, training={"use_cpu": True})
    return planned(bert, Data(source=reviews), [crisp.TopK(0.5)], seeds, recipe=recipe)


def swept(plan: Plan, output: Path, **work) -> tuple[StudyFolder, str]:
    """Sweep in this process; the study and what was said."""
    console = Console(file=io.StringIO(), width=80)
    study = carry_out(plan, Work(output=output, **work), console, command=("crisp", "again"))
    return study, console.file.getvalue()


def at_work(output: Path, pid: int | None = None) -> list[psutil.Process]:
    """The processes of a study's runs, under this process or another, that have begun: they write its logs."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            files = [Path(each.path) for each in process.open_files()]
        except psutil.Error:  # it has just ended
            continue
        if any(each.parent == output / "logs" and each.suffix == ".log" for each in files):
            found.append(process)
    return found


@contextmanager
def meanwhile(condition: Callable[[], Found], act: Callable[[Found], object]) -> Iterator[None]:
    """Acts on what `condition` returns, in a thread, as soon as that is something; fails if it never is."""
    ended, happened, errors = threading.Event(), [], []

    def watch():
        try:
            while not ended.wait(0.02):
                if found := condition():
                    happened.append(found)
                    act(found)
                    return
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]
    assert happened, "it did not happen"


def _hears_ctrl_c() -> None:
    # tests that a shell runs in the background have it ignored, and would hand that on
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Worker:
    """A `crisp sweep` of dense and top-k attention on small data; a session of its own, like a terminal's."""

    def __init__(self, bert: str, reviews: str, output: Path, *flags: str, seeds: int = 2, epochs: int = 2):
        words = f"sweep --model {bert} --dataset {reviews} --output {output} --method topk --sparsity 0.5"
        recipe = (
            f"--seeds {seeds} --epochs {epochs} --batch-size 8 --learning-rate 1e-2 --training use_cpu=true"
        )
        self.output = output
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.studies.quick", *f"{words} {recipe}".split(), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_hears_ctrl_c,
            env=os.environ | {"HF_DATASETS_CACHE": str(Path(reviews) / "cache"), "OMP_NUM_THREADS": "1"},
        )

    def ends(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Its exit code and what it printed."""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def family(self) -> list[psutil.Process]:
        """Itself and all processes under it."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def wait_for(self, condition: Callable[[], Found]) -> Found:
        """What `condition` returns, as soon as that is something; fails if the worker ends first."""
        found = until(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, self.ends()
        return found

    def wait_for_runs(self) -> list[psutil.Process]:
        """The processes of its runs, as soon as there are some; those runs are claimed."""
        return self.wait_for(lambda: self.process.poll() is None and at_work(self.output, self.process.pid))

    def kill(self) -> None:
        """End it as the system does when memory runs out; all its processes are gone when this returns."""
        family = self.family()
        self.process.kill()
        self.process.communicate()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []


def until(condition: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """What `condition` returns, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def metrics_files(*outputs: Path) -> dict[Path, tuple[int, bytes]]:
    """The files that finished runs wrote last, with their time and contents."""
    found = [file for output in outputs for file in output.glob("runs/*/metrics.json")]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def same_results(left: Path, right: Path) -> None:
    """Asserts that two folders hold the same finished runs: metrics but for times, and every logit."""
    studies = [StudyFolder.read(left), StudyFolder.read(right)]
    assert studies[0].missing() == studies[1].missing() == []
    for configuration in studies[0].configurations:
        for one, other in zip(*(study.finished(configuration) for study in studies), strict=True):
            same_run(one.directory.path, other.directory.path)


def same_run(left: Path, right: Path) -> None:
    """Asserts that two folders of runs hold the same metrics but for times, and the same logits."""
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (left, right))
    assert one.keys() == other.keys()
    for name in one.keys() - TIMES:
        assert one[name] == other[name], (left.name, name)
    for split in ("validation", "test"):
        tables = [pd.read_parquet(folder / f"predictions-{split}.parquet") for folder in (left, right)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def trials(name: str, url: str) -> list[optuna.trial.FrozenTrial]:
    """All trials of the study in the storage, in order."""
    return optuna.load_study(study_name=name, storage=url).get_trials()


def states(name: str, url: str) -> dict[str, list[str]]:
    """The states of each run's trials, in order."""
    found: dict[str, list[str]] = {}
    for trial in trials(name, url):
        found.setdefault(trial.user_attrs["run"], []).append(trial.state.name)
    return found


def database(output: Path) -> str:
    """The URL of the SQLite file in a study's folder."""
    return f"sqlite:///{output / DATABASE}"


def each_once(found: dict[str, list[str]], runs: int) -> None:
    """Asserts that there are `runs` runs, and each was completed exactly once, at last."""
    assert len(found) == runs
    for name, ends in found.items():
        assert ends.count("COMPLETE") == 1, (name, ends)
        assert ends[-1] == "COMPLETE", (name, ends)
