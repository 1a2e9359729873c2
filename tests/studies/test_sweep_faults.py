"""Whatever ends a worker, the study comes out as if nothing had happened."""

import os
import random
import signal
import time

import psutil
import pytest
from psutil import wait_procs

from tests.studies.sweeping import Worker, database, each_once, metrics_files, same_results, states, until

pytestmark = pytest.mark.slow
SEEDS, EPOCHS = 3, 8
KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(small_bert, reviews, tmp_path_factory):
    """The folder of a study that nothing disturbed, the seconds until its first run and those of its runs."""
    asked = time.monotonic()
    worker = Worker(
        small_bert, reviews, tmp_path_factory.mktemp("undisturbed") / "study", seeds=SEEDS, epochs=EPOCHS
    )
    worker.wait_for_runs()
    began = time.monotonic()
    code, said = worker.ends()
    assert code == 0, said
    each_once(states("study", database(worker.output)), 2 * SEEDS)
    return worker.output, began - asked, time.monotonic() - began


@pytest.fixture
def start(small_bert, reviews, tmp_path):
    """Starts a worker on the test's study; none outlives the test."""
    started = []

    def new(*flags, output=tmp_path / "study", seeds=SEEDS, epochs=EPOCHS):
        started.append(Worker(small_bert, reviews, output, *flags, seeds=seeds, epochs=epochs))
        return started[-1]

    yield new
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


def test_a_worker_killed_ten_times_loses_nothing_and_repeats_nothing(start, undisturbed, tmp_path):
    folder, starting, running = undisturbed
    drawn, done = random.Random(0), {}
    for kill in range(KILLS):
        worker = start("--workers", "2")
        if kill % 5:
            worker.wait_for_runs()
            time.sleep(drawn.uniform(0, running / 16))  # ten kills end before two workers could
        else:
            time.sleep(drawn.uniform(0, starting))
        assert worker.process.poll() is None, worker.ends()
        worker.kill()
        now = metrics_files(worker.output)
        assert now.items() >= done.items()
        done = now
    code, said = start("--workers", "2").ends()
    assert code == 0, said
    assert metrics_files(tmp_path / "study").items() >= done.items()
    found = states("study", database(tmp_path / "study"))
    each_once(found, 2 * SEEDS)
    assert any(len(each) > 1 for each in found.values())  # some runs were interrupted
    assert "continuing" not in said
    same_results(tmp_path / "study", folder)


def test_a_run_that_is_killed_is_recorded_and_the_study_goes_on(start, tmp_path):
    worker = start(seeds=1, epochs=30)
    run = worker.wait_for_runs()[0]
    run.kill()
    code, said = worker.ends()
    assert code == 3, said
    assert (
        "dense-seed-0: failed: the process was ended by SIGKILL, as the system does when memory runs out"
        in said
    )
    assert "topk-sparsity-0.5-seed-0: validation accuracy" in said
    assert "Traceback" not in said
    assert states("study", database(tmp_path / "study")) == {
        "dense-seed-0": ["FAIL"],
        "topk-sparsity-0.5-seed-0": ["COMPLETE"],
    }
    done = metrics_files(tmp_path / "study")
    code, said = start("--retry-failed", seeds=1, epochs=30).ends()
    assert code == 0, said
    assert states("study", database(tmp_path / "study"))["dense-seed-0"] == ["FAIL", "COMPLETE"]
    assert metrics_files(tmp_path / "study").items() > done.items()
    assert list((tmp_path / "study" / "runs").glob("*.failed.json")) == []


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted; run the same command again to continue"),
        (signal.SIGTERM, 143, "stopped by the system; run the same command again to continue"),
    ],
)
def test_a_worker_that_is_stopped_gives_its_runs_back(start, tmp_path, number, code, message):
    worker = start("--workers", "2", epochs=300)
    runs = worker.wait_for_runs()
    until(lambda: list((tmp_path / "study").glob("runs/*/checkpoints/checkpoint-*")))
    family, told = worker.family(), time.monotonic()
    os.killpg(worker.process.pid, number) if number == signal.SIGINT else worker.process.send_signal(number)
    ended, said = worker.ends()
    assert time.monotonic() - told < 20
    assert ended == code, said
    assert message in said
    assert "Traceback" not in said
    _, alive = wait_procs([*family, *runs], timeout=20)
    assert alive == []
    found = states("study", database(tmp_path / "study"))
    assert {each for ends in found.values() for each in ends} <= {"FAIL", "WAITING"}


def test_ctrl_c_is_quiet_while_the_first_run_still_imports(start):
    worker = start("--workers", "2")
    until(lambda: psutil.Process(worker.process.pid).children())
    os.killpg(worker.process.pid, signal.SIGINT)
    code, said = worker.ends()
    assert code == 130, said
    assert "Traceback" not in said


def test_two_workers_started_at_once_share_a_study(start, undisturbed, tmp_path):
    workers = [start(), start()]
    for worker in workers:
        code, said = worker.ends()
        assert code == 0, said
    found = states("study", database(tmp_path / "study"))
    each_once(found, 2 * SEEDS)
    assert [len(each) for each in found.values()] == [1] * 2 * SEEDS
    same_results(tmp_path / "study", undisturbed[0])


def test_a_worker_takes_over_at_once_what_a_killed_one_had(start, undisturbed, tmp_path):
    first, second = start(), start()
    first.wait_for_runs()
    second.wait_for_runs()
    first.kill()
    code, said = second.ends()
    assert code == 0, said
    each_once(states("study", database(tmp_path / "study")), 2 * SEEDS)
    same_results(tmp_path / "study", undisturbed[0])
