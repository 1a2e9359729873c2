"""What a run on a GPU measures, in small and on the CPU."""

import json
from dataclasses import replace

import pytest
import torch

from crisp_attention.bench.gpu import attention, layers, measured, models, tests
from crisp_attention.bench.gpu.attention import TOPK, TRITON_64, Asked, Ours, Shape
from crisp_attention.bench.gpu.cells import BOTH, CUBLAS, DENSE, FORWARD
from crisp_attention.bench.gpu.parts import Setting
from crisp_attention.bench.rounds import Effort


def quick() -> Setting:
    return Setting(100, quick=True, device="cpu")  # seconds from now on


@pytest.fixture(autouse=True)
def _three_rounds(monkeypatch) -> None:
    monkeypatch.setitem(measured.EFFORT, True, Effort(3, 0))


def rows(run, *given, setting=None):
    found = []
    run(*given, setting or quick(), found.append)
    json.dumps(found, allow_nan=False)
    return found


def names(row, kind):
    return {each["name"]: each.get("reason") for each in row[kind]}


def test_attention_in_both_directions_next_to_named_dense_backends() -> None:
    asked = Asked(
        "small", Shape(128, 4, 2, 32, "float32", causal=True), (TOPK, Ours("window", "window:width=9"))
    )
    forward, both = rows(attention.run, (asked,))
    assert (forward["direction"], both["direction"]) == (FORWARD, BOTH)
    for row in (forward, both):
        assert row["failed"] == []
        assert {"top-k", "window", "dense, math"} <= set(names(row, "timed"))
        assert "dense, cuDNN" in names(row, "absent")  # it is for CUDA
        assert row["yardstick"] in DENSE
        fastest = min(each["seconds"]["median"] for each in row["timed"] if each["name"] in DENSE)
        assert next(t for t in row["timed"] if t["name"] == row["yardstick"])["seconds"]["median"] == fastest
        assert max(row["differences"].values()) < 1e-5


def test_a_kernel_that_cannot_is_a_gap_and_one_that_is_wrong_a_failure(monkeypatch) -> None:
    wide = Asked("wide", Shape(64, 1, 1, 20, "float32"), (TRITON_64, TOPK))
    (row, _) = rows(attention.run, (wide,))
    assert "cannot compute this call" in names(row, "absent")[TRITON_64.name]
    monkeypatch.setattr(attention, "difference", lambda found, expected: 0.5)
    (row, _) = rows(attention.run, (replace(wide, group="wrong"),))
    assert "wrong: it differs from the reference by 5.0e-01 of its norm" in names(row, "failed")["top-k"]
    assert "no dense contender could be timed" in names(row, "failed")["wrong"]


def test_what_would_not_fit_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(attention, "free_bytes", lambda device: 1 << 20)
    asked = Asked("full", Shape(256, 2, 2, 16, "float32"), (Ours("by definition", "topk", "reference"),))
    assert "only 0 GiB are free" in names(rows(attention.run, (asked,))[0], "absent")["by definition"]


def test_without_time_cells_are_gaps() -> None:
    (row, _) = rows(attention.run, (Asked("late", Shape(64)),), setting=Setting(0, device="cpu"))
    assert set(names(row, "absent").values()) == {"no time was left for it"}
    assert set(names(row, "absent")) == {*DENSE, *(each.name for each in attention.METHODS)}


def test_layers_for_many_rows_and_for_one(monkeypatch) -> None:
    monkeypatch.setattr(layers, "BLOCKS", {"blocks of 8, 75%": (8, 0.75)})
    for count, dtype in ((5, "float32"), (1, "bfloat16")):
        (row,) = rows(lambda *given, c=count, d=dtype: layers.run(*given, (layers.Layer(32, 64, c, d),)))
        assert row["yardstick"] == CUBLAS
        assert set(names(row, "timed")) == {CUBLAS, "blocks of 8, 75%"}
        assert "CUDA" in names(row, "absent")[layers.TWO_OF_FOUR]


def test_the_norm_of_the_difference() -> None:
    assert measured.difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]) == pytest.approx(
        0.0924, abs=1e-3
    )
    assert measured.difference([torch.tensor([torch.nan])], [torch.ones(1)]) == float("inf")


SIZES = {"vocab_size": 1024, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 1}


@pytest.mark.slow
def test_whole_models(monkeypatch) -> None:
    from torch.nn.attention import SDPBackend

    monkeypatch.setattr(models, "CHECKED", 160)
    monkeypatch.setitem(models.NAMED, DENSE[0], SDPBackend.MATH)  # CPUs have no flash with dropout
    small = models.Sizes(SIZES, SIZES | {"num_key_value_heads": 2}, ((2, 80),), 96)
    found = rows(lambda *given: models.run_minilm(*given, small))
    found += rows(lambda *given: models.run_decoder(*given, small))
    assert len(found) == 2 * 2 + 2
    for row in found:
        assert row["failed"] == []
        assert set(models.METHODS) <= set(names(row, "timed"))
        assert 0 < row["differences"]["top-k"] < 1e-5


@pytest.mark.slow
def test_tests_are_shared_and_every_result_is_a_line(tmp_path) -> None:
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "pytestmark = pytest.mark.cuda\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'one'\n"
        "@pytest.mark.skip\ndef test_left(): pass\n"
        "@pytest.mark.slow\ndef test_dies(): os.abort()\n"
        "def test_never(): pass\n"
    )
    (row,) = rows(lambda *given: tests.run(*given, tmp_path), setting=Setting(60, device="cpu"))
    assert row["tests"]["collected"] == 5
    assert (row["tests"]["passed"], row["tests"]["failed"], row["tests"]["skipped"]) >= (1, 1, 1)
    assert any(each.endswith("::test_dies") for each in row["unfinished"])
    reasons = {each["name"].rpartition("::")[2]: each["reason"] for each in row["failed"]}
    assert reasons["test_bad"] == "AssertionError: one"
    assert "status -6" in reasons["pytest"]
    (row,) = rows(lambda *given: tests.run(*given, tmp_path / "none"))
    assert "this is no source tree" in names(row, "absent")["tests"]
