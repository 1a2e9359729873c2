"""Parts in processes of their own: one that raises, dies or hangs is recorded, and the others go on."""

import json
import time
from pathlib import Path

import pytest
import torch

from crisp_attention.bench.gpu import command, processes
from crisp_attention.bench.gpu.parts import PARTS, QUICK_TOTAL, TOTAL, Part, limits

ROOT = Path(__file__).parents[3]
MACHINE = {"gpu": "a GPU", "driver": "1", "cuda": "13", "python": "3.12", "date": "today", "commit": "c0ffee"}
MACHINE |= {"versions": dict.fromkeys(("torch", "triton", "transformers"), "1"), "not installed": ["optuna"]}


def fake(name: str, seconds: float = 30) -> Part:
    return Part(name, name, f"tests.bench.gpu.fakes:{name}", seconds, seconds)


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(processes, "GRACE", 0.1)


def test_what_goes_wrong_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys) -> None:
    # a part that hangs has what the others do not need, which is little here
    parts = [*map(fake, ("raises", "dies", "hangs", "finds_a_fault", "finds"))]
    monkeypatch.setattr(command, "limits", lambda left, quick, spent: 4 if left[0].name == "hangs" else 60)
    output, began = tmp_path / "found" / "gpu.json", time.monotonic()
    assert command.run(parts, True, output, MACHINE, "cpu") == 1
    assert time.monotonic() - began < 40
    found = json.loads(output.read_text())
    assert {each["name"]: each["problem"] for each in found["parts"]} == {
        "raises": "ended with status 1: RuntimeError: boom",
        "dies": "died of SIGSEGV",
        "hangs": "took longer than its 4 seconds and was ended",
        "finds_a_fault": "1 failed: top-k",
        "finds": None,
    }
    assert [len(each["rows"]) for each in found["parts"]] == [1, 1, 1, 1, 2]
    said = capsys.readouterr()
    assert "    quick: True, on cpu" in said.err
    assert "failed: dies: died of SIGSEGV" in said.err
    assert "**Failed parts**: raises (ended with status 1: RuntimeError: boom)" in said.out
    assert output.with_suffix(".md").read_text().strip() == said.out.strip()


def test_where_nothing_goes_wrong_the_status_is_0(tmp_path) -> None:
    assert command.run([fake("finds")], False, tmp_path / "gpu.json", MACHINE, "cpu") == 0


def test_time_that_a_part_does_not_need_goes_to_the_next() -> None:
    assert sum(each.seconds for each in PARTS) <= TOTAL < 9 * 60
    assert sum(each.quick for each in PARTS) <= QUICK_TOTAL < 60
    _, *others = parts = (fake("finds", 100), fake("raises", 50))
    assert limits(parts, False, 0) == TOTAL - 50
    assert limits(tuple(others), False, 20) == TOTAL - 20


def test_without_a_device_nothing_begins(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "run", pytest.fail)
    assert command.main(["gpu", "--output", str(tmp_path / "gpu.json")]) == 2
    assert "finds no CUDA device here" in capsys.readouterr().err
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "triton" else name)
    assert command.main(["gpu"]) == 2
    assert "needs triton, not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names", "quick", "output"),
    [
        ([], [each.name for each in PARTS], False, "docs/studies/bench/gpu.json"),
        (["--quick"], [each.name for each in PARTS if each.quick], True, "runs/gpu.json"),
        (["--parts", "layers", "tests"], ["tests", "layers"], False, "runs/gpu.json"),
        (["--quick", "--parts", "flex", "--output", "a.json"], ["flex"], True, "a.json"),
    ],
)
def test_what_is_asked_for(monkeypatch, words, names, quick, output) -> None:
    asked = []
    monkeypatch.setattr(command, "missing", lambda: None)
    monkeypatch.setattr(command, "machine", dict)
    monkeypatch.setattr(command, "run", lambda *given: asked.append(given) or 0)
    assert command.main(["gpu", *words]) == 0
    assert ([each.name for each in asked[0][0]], *asked[0][1:3]) == (names, quick, Path(output))
    assert asked[0][3:] == ({}, "cuda")


def test_every_part_names_a_function() -> None:
    from importlib import import_module

    for each in PARTS:
        module, _, function = each.run.partition(":")
        assert callable(getattr(import_module(module), function))
