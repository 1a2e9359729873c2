"""Time and memory are those of training, on the run's own device."""

from types import SimpleNamespace

import pytest
import torch

from crisp_attention.runs.costs import PeakMemory, StepTimes

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def called(monkeypatch):
    """The calls of a machine with CUDA devices, which there need not be."""
    calls = []

    def record(name, answer=None):
        monkeypatch.setattr(torch.cuda, name, lambda device: (calls.append((name, device)), answer)[1])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    record("synchronize")
    record("reset_peak_memory_stats")
    record("max_memory_allocated", 7)
    return calls


def steps(callback, device, count=3):
    args, state = SimpleNamespace(device=device), SimpleNamespace(stateful_callbacks={})
    callback.on_train_begin(args, state, None)
    for _ in range(count):
        callback.on_step_begin(args, state, None)
        callback.on_step_end(args, state, None)
    return callback


def test_a_run_on_the_cpu_does_not_touch_cuda(called):
    times = steps(StepTimes(), CPU)
    assert len(times.seconds) == 3
    assert times.total() == sum(times.seconds)
    assert times.median() == sorted(times.seconds)[1]
    assert steps(PeakMemory(), CPU).peak > 10 * 2**20
    assert called == []


def test_a_run_on_cuda_asks_its_own_device_from_the_beginning_of_training(called):
    steps(StepTimes(), CUDA, count=1)
    assert steps(PeakMemory(), CUDA, count=1).peak == 7
    names = ["synchronize", "synchronize", "reset_peak_memory_stats", "max_memory_allocated"]
    assert called == [(name, CUDA) for name in names]


def test_memory_that_was_given_back_before_training_or_taken_after_it_does_not_count():
    taken = bytearray(2**28)
    del taken
    memory = PeakMemory()
    args, state = SimpleNamespace(device=CPU), SimpleNamespace(stateful_callbacks={})
    memory.on_train_begin(args, state, None)
    if not memory.of_training:
        pytest.skip("this system only knows the peak of the whole process")
    memory.on_step_end(args, state, None)
    before = memory.peak
    taken = bytearray(2**28)
    assert memory.peak == before
    memory.on_step_end(args, state, None)
    assert memory.peak - before >= 0.9 * len(taken)


def test_the_peak_before_an_interruption_counts():
    state = SimpleNamespace(stateful_callbacks={"PeakMemory": {"attributes": {"peak": 2**50}}})
    memory = PeakMemory()
    memory.on_train_begin(SimpleNamespace(device=CPU), state, None)
    memory.on_step_end(SimpleNamespace(device=CPU), state, None)
    assert memory.peak == memory.state()["attributes"]["peak"] == 2**50
