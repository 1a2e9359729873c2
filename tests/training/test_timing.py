"""Time and memory are those of the run's own device."""

from types import SimpleNamespace

import pytest
import torch

from crisp_attention.training.timing import StepTimes, peak_memory

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


def steps(device, count=3):
    args, state, times = SimpleNamespace(device=device), SimpleNamespace(stateful_callbacks={}), StepTimes()
    times.on_train_begin(args, state, None)
    for _ in range(count):
        times.on_step_begin(args, state, None)
        times.on_step_end(args, state, None)
    return times


def test_a_run_on_the_cpu_does_not_touch_cuda(called):
    times = steps(CPU)
    assert len(times.seconds) == 3
    assert times.total() == sum(times.seconds)
    assert times.median() == sorted(times.seconds)[1]
    assert peak_memory(CPU) > 10 * 2**20
    assert called == []


def test_a_run_on_cuda_asks_its_own_device_from_the_beginning_of_training(called):
    steps(CUDA, count=1)
    assert peak_memory(CUDA) == 7
    names = ["reset_peak_memory_stats", "synchronize", "synchronize", "max_memory_allocated"]
    assert called == [(name, CUDA) for name in names]
