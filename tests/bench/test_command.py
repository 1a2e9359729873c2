"""`crisp bench` as a person meets it."""

import json
import sys

import pytest

from crisp_attention.bench.options import PARTS
from crisp_attention.cli import main as cli

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Runs the command in this process: exit status, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["crisp", "bench", "--output", str(tmp_path / "bench"), *words])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "1"], "--sparsity must be in [0, 1), got 1.0"),
        (["--lengths", "64", "0"], "--lengths must be a whole number of at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be a whole number of at least 1, got 0"),
        (["--threads", "0"], "--threads must be a whole number of at least 1, got 0"),
        (["--heads", "-1"], "--heads must be a whole number of at least 1, got -1"),
        (["--method", "magic"], "--method magic: unknown method 'magic'"),
        (["--method", "topk:keep=x"], "--method topk:keep=x: "),
        (["--method", "sparsefinder"], "it is fitted to a model, which this does not have"),
        (["--parts"], "--parts"),
        (["--parts", "sparsefinder"], "--parts sparsefinder needs --text"),
        (["--parts", "sparsefinder", "--text", "none.txt"], "--text none.txt: "),
        (["--parts", "pruning", "--device", "cuda"], "--parts pruning is measured on the CPU, not on cuda"),
        (["--parts", "rows", "--device", "cuda"], "--parts rows is measured on the CPU, not on cuda"),
        (["--parts", "pruning", "--text", "some.txt"], "--text is for the part sparsefinder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(bench, tmp_path, words, message):
    status, out, err = bench(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_no_cuda_device(bench, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _, err = bench("--device", "cuda")
    assert (status, err) == (2, "error: --device cuda: torch finds no CUDA device here\n")


def test_an_output_that_is_a_file(bench, tmp_path):
    (tmp_path / "bench").write_text("hello")
    status, _, err = bench()
    assert status == 2
    assert "is a file; expected a folder" in err


@pytest.mark.slow
def test_a_small_run_of_the_attention_part(bench, tmp_path):
    words = ("--quick", "--parts", "attention", "--method", "topk", "--lengths", "32", "48")
    status, out, err = bench(*words, "--heads", "2", "--batch", "1", "--rounds", "3")
    assert status == 0
    assert "topk, 32 tokens, forward + backward" in err
    assert "topk, forward: time as a ratio to dense SDPA" in out
    assert "FlexAttention: " in out
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert [(c["shape"]["length"], c["backward"]) for c in found["attention"]] == [
        *((32, False), (32, True)),
        *((48, False), (48, True)),
    ]
    assert found["machine"]["threads"] >= 1
    assert found["machine"]["versions"]["torch"]
    assert found["matrix_rate"]["float32"] > 1e8
    written = {path.name for path in (tmp_path / "bench").iterdir()}
    assert written == {"bench.json", "bench.html", "bench.svg", "bench.png"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's compiler uses it
def test_a_quick_run_of_everything(bench, data_folder, tmp_path):
    text = str(data_folder / "wikitext-2" / "train.txt")
    status, out, _ = bench("--quick", "--heads", "2", "--rounds", "3", "--text", text, "--parts", *PARTS)
    assert status == 0
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert {len(step["timed"]) for step in found["step"]} == {2}
    assert all(memory["peak_bytes"]["dense SDPA"] > 0 for memory in found["memory"])
    assert found["first_call"][0]["seconds"]["filled"]["forward"] > 0
    assert max(map(len, out.splitlines())) <= 100
    assert [each["model"] for each in found["hooked"]] == ["a GPT written by hand", "DiT", "Flux"]
    for each in found["hooked"]:
        assert each["calls"] > 8
        assert each["step_share"] * each["step_seconds"] == pytest.approx(6 * each["seconds"]["median"])
    (predicted,) = found["predicted"]
    assert predicted["shape"] == {"batch": 1, "heads": 12, "length": 2048, "width": 32}
    assert predicted["scores"]["sparsity"] == pytest.approx(0.8, abs=0.1)
    assert 1 - predicted["scores"]["sparsity"] < predicted["scores"]["kept_mass"] < 1
    assert predicted["scores"]["sparsity_without_window"] > predicted["scores"]["sparsity"]
    assert 0 < predicted["predicting_share"] < 1
    assert "\n  bar " in out
    assert {timed["name"] for timed in predicted["timed"]} >= {"crisp, predicted blocks", "entmax package"}
    assert {each["part"] for each in found["situated"]} == {"generation", "padded", "rows"}
    assert all(len(each["timed"]) >= 2 for each in found["situated"])
    assert "the project's bars (largest ratios allowed): " in out
    assert [each["subject"] for each in found["pruned"]] == ["768 to 3072", "768 to 3072", "MiniLM"]
    assert all(each["sparsity"] >= each["target"] for each in found["pruned"])
    assert all(each["layer_bytes"] < 0.3 for each in found["pruned"])
    assert found["pruned"][2]["layer_bytes"] < found["pruned"][2]["saved_bytes"] < 0.62
    # groups stay as large as they are: four times the tokens have about four times the pairs
    for variant in ("kmeans", "quantize"):
        few, many = (each["pairs_per_head"] for each in found["listed"] if each["variant"] == variant)
        assert 2 < many / few < 8


def test_a_text_that_is_too_short(bench, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    status, _, err = bench("--text", str(tmp_path / "short.txt"))
    assert status == 2
    assert "short.txt must have at least 53,248 tokens, got 3" in err
