"""Every run has one worker at a time, and is done once."""

import platform
from collections import Counter
from unittest.mock import Mock

import pytest
from optuna.trial import TrialState

from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.queue import WORKER, Planned
from tests.studies.claiming import (
    PLANNED,
    be_silent_for,
    claim_all,
    claim_one,
    hold_lock,
    in_a_thread,
    open_queue,
    started,
)

WORKERS, CLAIMS = 3, 5
WAITING, RUNNING, COMPLETE, FAIL = (
    TrialState.WAITING,
    TrialState.RUNNING,
    TrialState.COMPLETE,
    TrialState.FAIL,
)


@pytest.fixture
def queue(tmp_path):
    return open_queue(tmp_path)


def claimed_by(workers):
    """What each of them claimed, all starting at once."""
    for _, pipe in workers:
        assert pipe.recv() == "ready"
    for _, pipe in workers:
        pipe.send("go")
    return Counter(name for _, pipe in workers for name in pipe.recv())


@pytest.mark.parametrize("start", [pytest.param(started, marks=pytest.mark.slow), in_a_thread])
def test_workers_never_claim_the_same_run(tmp_path, start):
    planned = [Planned(f"run-{number}", {"number": number}) for number in range(WORKERS * CLAIMS)]
    assert claimed_by([start(claim_all, tmp_path, planned) for _ in range(WORKERS)]) == {
        each.name: 1 for each in planned
    }
    assert set(open_queue(tmp_path).states().values()) == {COMPLETE}


@pytest.mark.slow
def test_the_run_of_a_killed_process_goes_to_the_next_with_what_was_chosen_for_it(queue, tmp_path):
    process, pipe = started(claim_one, tmp_path)
    name, chosen = pipe.recv()
    assert [queue.claim(PLANNED).user_attrs["run"] for _ in PLANNED[1:]] == ["run-1", "run-2"]
    assert queue.claim(PLANNED) is None  # its worker lives
    process.kill()
    process.join()
    again = queue.claim(PLANNED)
    assert (again.user_attrs["run"], again.suggest_float("chosen", 0, 1)) == (name, chosen)
    assert name == "run-0"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 0.0}, {"boot": "another"}])
def test_the_run_of_a_dead_worker_of_this_machine_is_claimed_at_once(queue, changes):
    dead = queue.claim(
        PLANNED
    )  # the process is no more, its number is that of another, it was before a restart
    chosen = dead.suggest_float("chosen", 0, 1)
    assert [queue.claim(PLANNED).user_attrs["run"] for _ in PLANNED[1:]] == ["run-1", "run-2"]
    assert queue.claim(PLANNED) is None
    dead.set_user_attr(WORKER, dead.user_attrs[WORKER] | changes)
    again = queue.claim(PLANNED)
    if "boot" in changes:  # a machine that may be another: its heartbeat counts
        assert again is None
        return
    assert (again.user_attrs["run"], again.suggest_float("chosen", 0, 1)) == ("run-0", chosen)
    assert queue.claim(PLANNED) is None


def test_of_another_machine_only_the_heartbeat_tells(tmp_path, monkeypatch):
    patient, hasty = open_queue(tmp_path), open_queue(tmp_path, grace=1)
    with monkeypatch.context() as there:
        there.setattr(platform, "node", lambda: "elsewhere")
        name = patient.claim(PLANNED).user_attrs["run"]
    assert [patient.claim(PLANNED).user_attrs["run"] for _ in PLANNED[1:]] == ["run-1", "run-2"]
    assert patient.claim(PLANNED) is None
    be_silent_for(hasty, 10)
    assert patient.claim(PLANNED) is None
    assert hasty.claim(PLANNED).user_attrs["run"] == name


def test_a_worker_that_seemed_dead_learns_that_it_lost_its_run(tmp_path, queue):
    slow = queue.claim(PLANNED[:1])
    assert queue.beat(slow)
    be_silent_for(queue, 10)
    other = open_queue(tmp_path, grace=1)
    again = other.claim(PLANNED[:1])
    assert again.user_attrs["run"] == slow.user_attrs["run"]
    assert not queue.beat(slow)
    queue.fail(slow, "it does not matter any more")
    queue.finish(slow, 0.1)
    queue.give_back(slow)
    assert queue.states() == {"run-0": RUNNING}
    other.finish(again, 0.5)
    assert queue.states() == {"run-0": COMPLETE}


def test_a_run_given_back_is_claimed_again(queue):
    trial = queue.claim(PLANNED)
    queue.give_back(trial)
    assert "run-0" not in queue.states()
    names = {queue.claim(PLANNED).user_attrs["run"] for _ in PLANNED}
    assert names == {each.name for each in PLANNED}
    assert queue.claim(PLANNED) is None
    assert list(queue.states().values()).count(RUNNING) == 3


def test_a_failed_run_is_done_again_only_when_asked_for(queue):
    queue.fail(queue.claim(PLANNED[:1]), "it crashed")
    assert queue.claim(PLANNED[:1]) is None
    assert queue.states() == {"run-0": FAIL}
    queue.retry()
    queue.retry()
    assert queue.states() == {"run-0": WAITING}
    trial = queue.claim(PLANNED[:1])
    queue.give_back(trial)  # the second attempt is interrupted: the run has not failed again
    queue.finish(queue.claim(PLANNED[:1]), 0.5)
    assert queue.claim(PLANNED[:1]) is None
    queue.retry()
    assert queue.states() == {"run-0": COMPLETE}


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_the_lock(queue, tmp_path):
    process, pipe = started(hold_lock, tmp_path)
    assert pipe.recv() == "inside"
    process.kill()
    assert queue.claim(PLANNED) is not None


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.COMPLETE])
def test_processes_can_be_started_before_a_run_is_claimed(state):
    """Else a run would be taken for dead where importing everything takes longer than the grace period."""
    seen = Mock()
    seen.pool.jobs = []
    seen.pool.messages.return_value = []
    seen.queue.states.side_effect = [{"a": state}, {"a": TrialState.COMPLETE}]
    seen.queue.claim.return_value = None
    Campaign(seen.queue, seen.pool, Mock(), Mock())._work([Planned("a", {})])
    names = [name for name, *_ in seen.mock_calls if name in ("pool.get_ready", "queue.claim")]
    assert names == ["pool.get_ready"] * (state == TrialState.WAITING) + ["queue.claim"]
