"""Whatever ends a worker, the study comes out as if nothing had happened."""

import os
import signal
import threading

import psutil
import pytest

from tests.studies.sweeping import (
    Worker,
    at_work,
    database,
    each_once,
    meanwhile,
    metrics_files,
    same_results,
    small_plan,
    states,
    swept,
)

pytestmark = pytest.mark.slow
SEEDS, EPOCHS = 2, 8


@pytest.fixture
def start(small_bert, reviews, tmp_path):
    """Starts a worker on the test's study; none outlives the test."""
    started = []

    def new(*flags):
        worker = Worker(small_bert, reviews, tmp_path / "study", *flags, seeds=SEEDS, epochs=EPOCHS)
        started.append(worker)
        return worker

    yield new
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


def test_a_worker_killed_again_and_again_loses_nothing_and_repeats_nothing(start, undisturbed, tmp_path):
    study = tmp_path / "study"

    done = {}
    for files in ("runs/*/checkpoints/*", "runs/*/metrics.json"):
        before = set(study.glob(files))
        worker = start("--workers", "2")
        worker.wait_for(lambda files=files, before=before: set(study.glob(files)) - before)
        worker.kill()
        now = metrics_files(study)
        assert now.items() >= done.items()
        done = now
    code, said = start("--workers", "2").ends()
    assert code == 0, said
    assert metrics_files(study).items() >= done.items()
    found = states("study", database(study))
    each_once(found, 2 * SEEDS)
    assert any(len(each) > 1 for each in found.values())  # some runs were interrupted
    assert "continuing" not in said
    same_results(study, undisturbed)


def test_a_worker_takes_over_at_once_what_one_that_was_killed_had(start, undisturbed, tmp_path):
    first, second = start(), start()
    first.wait_for_runs()
    first.kill()
    code, said = second.ends()
    assert code == 0, said
    found = states("study", database(tmp_path / "study"))
    each_once(found, 2 * SEEDS)
    assert sorted(map(len, found.values())) == [*[1] * (2 * SEEDS - 1), 2]
    same_results(tmp_path / "study", undisturbed)


def test_ctrl_c_is_quiet_while_the_first_run_still_imports(start):
    worker = start("--workers", "2")
    worker.wait_for(lambda: psutil.Process(worker.process.pid).children())
    os.killpg(worker.process.pid, signal.SIGINT)
    code, said = worker.ends()
    assert code == 130, said
    assert "Traceback" not in said


# --- a worker in this process


def test_a_run_that_is_killed_is_recorded_and_the_study_goes_on(small_bert, reviews, tmp_path):
    plan, output = small_plan(small_bert, reviews, seeds=1, epochs=2), tmp_path / "study"
    with meanwhile(lambda: at_work(output), lambda runs: runs[0].kill()):
        _, said = swept(plan, output)
    assert (
        "dense-seed-0: failed: the process was ended by SIGKILL, as the system does when memory runs out"
        in said
    )
    assert "topk-sparsity-0.5-seed-0: validation accuracy" in said
    assert states("study", database(output)) == {
        "dense-seed-0": ["FAIL"],
        "topk-sparsity-0.5-seed-0": ["COMPLETE"],
    }
    done = metrics_files(output)
    swept(plan, output, retry_failed=True)
    assert states("study", database(output))["dense-seed-0"] == ["FAIL", "COMPLETE"]
    assert metrics_files(output).items() > done.items()
    assert list((output / "runs").glob("*.failed.json")) == []


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_worker_that_is_stopped_gives_its_runs_back(
    small_bert, reviews, tmp_path, monkeypatch, number, end
):
    output, runs = tmp_path / "study", []

    def trained():
        return list(output.glob("runs/*/checkpoints/checkpoint-*"))

    def stop(_):
        runs.extend(at_work(output))
        signal.pthread_kill(threading.main_thread().ident, number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as started from a terminal
    try:
        with pytest.raises(end) as ended, meanwhile(trained, stop):
            swept(small_plan(small_bert, reviews, SEEDS, epochs=300), output, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert number == signal.SIGINT or ended.value.code == 143
    assert runs
    assert psutil.wait_procs(runs, timeout=60)[1] == []
    found = states("study", database(output))
    assert {each for ends in found.values() for each in ends} <= {"FAIL", "WAITING"}
