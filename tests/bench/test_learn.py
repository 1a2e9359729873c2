"""`crisp bench --learn`: measures, says what became the fastest, and leaves a table that is obeyed."""

import pytest
import torch

from crisp_attention import BlockTopK, Dense, TopK
from crisp_attention.bench import command, learn
from crisp_attention.bench.learn import Example
from crisp_attention.bench.rounds import Effort
from crisp_attention.kernels import dispatch, preference
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty folder for caches, in which nothing takes long to measure."""
    monkeypatch.setenv("CRISP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(learn, "EFFORT", Effort(3, 0))
    dispatch.forget()
    yield tmp_path / "cache"
    dispatch.forget()


@pytest.fixture
def few(monkeypatch) -> list[Example]:
    """Only these are measured."""
    examples = [
        Example(as_method(Dense()), 16, 16, 32, causal=False, gradients=False),
        Example(as_method(TopK(0.5)), 16, 16, 32, causal=True, gradients=True),
        Example(as_method(BlockTopK(0.5, 16)), 32, 32, 32, causal=False, gradients=False),
    ]
    monkeypatch.setattr(learn, "planned", lambda device: examples)
    return examples


def test_the_command_end_to_end(crisp_command, cache, few, monkeypatch):
    clock = {"sdpa": 3.0, "cpu": 2.0, "reference": 1.0}
    measured = []

    def interleaved(calls, *more):
        for each in calls.values():
            each()
        measured.append(list(calls))
        return {name: [9.0, clock[name]] for name in calls}

    monkeypatch.setattr(learn, "interleaved", interleaved)
    monkeypatch.setattr(command, "BUSY", -1.0)
    status, out, err = crisp_command("bench", "--learn")
    assert status == 0
    assert measured == [["sdpa", "cpu", "reference"], ["cpu", "reference"], ["cpu", "reference"]]
    assert "topk:sparsity=0.5, 16 x 16 pairs, width 32, causal, with gradients" in err
    assert "run it once more when it is not, as this is kept" in err
    assert "rows 50%, grad." in out
    assert "3 of 3 kinds of calls get another kernel than before, and take 0.44 of the time" in out
    file = preference.path(CPU)
    assert file.is_relative_to(cache)
    assert str(file) in out
    table = preference.read(file)
    assert table.machine == preference.device_name(CPU)
    assert [(each.kind.form, each.kind.gradients, each.order[0]) for each in table.kinds] == [
        ("dense", False, "reference"),
        ("rows", True, "reference"),
        ("blocks", False, "reference"),
    ]
    states = [torch.randn(1, 8, 20, 32) for _ in range(3)]
    assert dispatch.plan(Call(*states, as_method(Dense()), 1.0))[0].kernel == "reference"


def test_times_are_those_of_the_kernels(cache, few):
    table = learn.measured("cpu", lambda what: None)
    assert all(0 < taken < 10 for each in table.kinds for taken in each.seconds.values())


@pytest.mark.parametrize(
    ("times", "ranked"),
    [
        (
            {"sdpa": [1.0, 1.0, 1.0], "cpu": [0.9, 0.9, 0.9], "reference": [0.5, 0.5, 0.5]},
            "reference cpu sdpa",
        ),
        (
            {"sdpa": [1.0, 1.0, 1.0], "cpu": [0.96, 0.96, 0.96], "reference": [0.92, 0.93, 9.0]},
            "sdpa cpu reference",
        ),
        ({"sdpa": [1.0, 8.0, 8.0], "cpu": [2.0, 2.0, 2.0]}, "sdpa cpu"),  # once when nothing else ran
        ({"sdpa": [1.0, 1.0, 1.0], "cpu": [0.2, 2.0, 2.0]}, "sdpa cpu"),
        ({"cpu": [1.0, 9.0, 9.0], "reference": [2.0, 12.0, 12.0]}, "cpu reference"),
    ],
)
def test_only_what_is_clearly_faster_comes_before_what_came_first(times, ranked):
    assert learn._ranked(times) == ranked.split()


def test_a_kernel_that_fails_is_left_out(cache, few, monkeypatch):
    attention = dispatch.attention

    def failing(call, backend):
        if backend == "cpu":
            raise RuntimeError("no compiler")
        return attention(call, backend)

    monkeypatch.setattr(dispatch, "attention", failing)
    with pytest.warns(UserWarning, match="cpu is left out, as it fails: RuntimeError: no compiler"):
        table = learn.measured("cpu", lambda what: None)
    assert [sorted(each.seconds) for each in table.kinds] == [["reference", "sdpa"], *[["reference"]] * 2]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_measured_are_kinds_of_their_own(device):
    examples = learn.planned(device)
    some = [each for each in examples if each.queries * each.keys <= 128**2 and each.width <= 64]
    found = [preference.kind_of(learn.with_blocks(each.call("cpu"))) for each in some]
    assert None not in found
    assert len(set(found)) == len(found)
    assert {each.gradients for each in examples if each.queries > 1} == {False, True}


def test_the_reference_is_no_choice_for_many_pairs(cache, few, monkeypatch):
    monkeypatch.setattr(preference, "FEW_PAIRS", 8 * 16 * 16)
    table = learn.measured("cpu", lambda what: None)
    assert ["reference" in each.seconds for each in table.kinds] == [True, True, False]


@pytest.mark.parametrize("words", [["--quick"], ["--parts", "rows"], ["--rounds", "3"], ["--output", "here"]])
def test_it_takes_no_options_of_other_measurements(crisp_command, cache, words):
    status, out, err = crisp_command("bench", "--learn", *words)
    assert (status, out) == (2, "")
    assert f"--learn takes device and threads alone, got {words[0].removeprefix('--')} too" in err
    assert not cache.exists()


def test_a_folder_that_cannot_be_written(crisp_command, cache, few):
    cache.write_text("a file")
    status, _, err = crisp_command("bench", "--learn")
    assert status == 2
    assert "cannot write the results" in err
