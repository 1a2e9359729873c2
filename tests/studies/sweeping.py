"""Small sweeps, in processes of their own that can be disturbed, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import psutil

from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.sweep.storage import DATABASE

SECONDS = 400  # a process starts within seconds, but cores may be busy with other things
TIMES = {"seconds_per_step", "train_seconds", "peak_memory_bytes"}


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
            [sys.executable, "-m", "crisp_attention", *f"{words} {recipe}".split(), *flags],
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

    def runs(self) -> list[psutil.Process]:
        """The processes of its runs: the children of the server that forks them."""
        try:
            servers = psutil.Process(self.process.pid).children()
            return [run for server in servers for run in server.children()]
        except psutil.NoSuchProcess:
            return []

    def family(self) -> list[psutil.Process]:
        """Itself and all processes under it."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def wait_for_runs(self) -> list[psutil.Process]:
        """Return when runs are at work."""
        return until(lambda: self.process.poll() is not None or self.runs()) and self.runs()

    def kill(self) -> None:
        """End it as the system does when memory runs out; all its processes are gone when this returns."""
        family = self.family()
        self.process.kill()
        self.process.communicate()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []


def until(condition, seconds: float = SECONDS):
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
