"""`crisp profile`: from a model and a data set to a table, a picture and budgets that a run can take."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import crisp_attention as crisp
from crisp_attention.cli import main as cli
from crisp_attention.cli.options import ProfileOptions
from crisp_attention.cli.profile import run_profile
from crisp_attention.errors import CheckpointError, DataError, OptionError
from crisp_attention.runs.sources import load_source
from tests.runs import small
from tests.runs.tables import task_of


def no_picture(profile, path, budgets):
    path.touch()


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    # drawing takes longer than all the rest
    monkeypatch.setattr(crisp.Profile, "plot", no_picture)


@pytest.fixture(scope="module")
def profiled(bert, reviews, tmp_path_factory):
    """A profile of the validation split, its budgets, their file, and what a terminal showed."""
    folder, terminal = tmp_path_factory.mktemp("profiled"), io.StringIO()
    asked = options(bert, reviews, folder, save=folder / "budgets.json", sparsity=0.5, split="validation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crisp.Profile, "plot", no_picture)
        found = run_profile(asked, Console(file=terminal, force_terminal=True, width=100))
    return SimpleNamespace(
        found=found, budgets=crisp.budgets(asked.save), file=asked.save, shown=terminal.getvalue()
    )


def options(model: str, dataset: str, output, **changes) -> ProfileOptions:
    given = {"model": model, "dataset": dataset, "output": output, "batch_size": 8, "block_size": 3}
    return ProfileOptions(**given | changes)


def test_the_command_says_what_is_safe_and_leaves_everything(bert, reviews, tmp_path, monkeypatch, capsys):
    words = [
        "crisp",
        "profile",
        "--model",
        bert,
        "--dataset",
        reviews,
        "--sparsity",
        "0.6",
        "--block-size",
        "3",
    ]
    words += ["--output", str(tmp_path / "out"), "--save", str(tmp_path / "new" / "budgets.json")]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"model: BertForSequenceClassification, {load_source(bert, task_of(reviews), None).model.num_parameters():,} "
        f"parameters",
        "longest text: 64 tokens instead of 128, as the model takes no more",
        "text column: text; label column: label",
        "profiling 48 examples of the train split",
    ]
    assert [line.split()[0] for line in out.splitlines() if re.match(r" *\d ", line)] == ["0", "1", "2"]
    budgets = crisp.budgets(tmp_path / "new" / "budgets.json")
    seen, uniform = budgets.expected, budgets.expected["uniform"]
    assert (
        f"as many pairs as a sparsity of 0.6 in all heads ({seen['sparsity']:.1%} achieved): "
        f"{seen['mass']:.1%} of the mass kept, instead of {uniform['mass']:.1%}"
    ) in out
    for mass in ("99%", "95%", "90%"):
        assert f"every head keeps {mass} of its mass with top-k at an overall sparsity of" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"heads.csv", "curves.csv", "profile.png"}
    heads, curves = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("heads", "curves"))
    assert len(heads) == 3 * 2
    assert len(curves) == 3 * 2 * 2 * 40
    achieved = curves[curves["target"] == 0.8].groupby("method")["sparsity"].mean()
    assert achieved["block_topk"] < 0.75  # the texts are short: a heading of 80 % would not be true
    assert f"at {achieved['block_topk']:.0%}" in out
    assert str(tmp_path / "out") in out


def test_a_mistake_is_one_line_and_exit_status_2(bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crisp", "profile", "--model", bert, "--dataset", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "holds no data set" in line


def test_a_run_takes_the_budgets_and_keeps_what_was_expected(bert, reviews, tmp_path, profiled):
    budgets = profiled.budgets
    assert profiled.found.kept(budgets)[0] == budgets.expected["sparsity"]
    changes = {"sparsity": None, "budgets": profiled.file, "epochs": 0.1}
    run = small.tuned(small.options(bert, reviews, tmp_path / "run", **changes))
    # top-k's number of pairs follows from the lengths alone, and both looked at the 16 validation examples
    assert run.metrics["achieved_sparsity"] == pytest.approx(budgets.expected["sparsity"], rel=1e-12)


def test_budgets_can_be_for_a_mass_and_for_blocks(bert, reviews, tmp_path, capsys):
    path = tmp_path / "budgets.json"
    run_profile(options(bert, reviews, tmp_path / "out", save=path, mass=0.97, method="block_topk"))
    budgets = crisp.budgets(path)
    assert budgets.expected["target"] == {"mass": 0.97}
    assert {each.block_size for each in budgets.methods.values()} == {3}
    out = capsys.readouterr().out
    assert "every head keeps 97% of its mass with blocks at an overall sparsity of" in out
    assert "recommended" not in out


def test_any_sparsity_can_be_asked_for_and_an_earlier_profile_is_replaced(bert, reviews, tmp_path):
    (tmp_path / "curves.csv").write_text("target\n0.613\n")
    found = run_profile(options(bert, reviews, tmp_path, sparsity=0.613))
    assert 0.613 in found.targets.sparsities
    assert sorted(set(pd.read_csv(tmp_path / "curves.csv")["target"])) == list(found.targets.sparsities)


def test_it_profiles_the_examples_that_were_asked_for(bert, reviews, tmp_path):
    found = run_profile(options(bert, reviews, tmp_path, examples=10, split="validation", max_length=5))
    rows = found.table()["rows"]
    assert (rows == rows[0]).all()
    assert 10 * 4 <= rows[0] <= 10 * 5  # texts of two words and more, [CLS] and [SEP], cut to five


def test_a_sparse_checkpoint_is_profiled_dense(bert, reviews, tmp_path, profiled):
    source = load_source(bert, task_of(reviews), None)
    model = crisp.sparsify(source.model, layers={"0": crisp.TopK(0.9), "1": crisp.Entmax("learned")})
    model.save_pretrained(tmp_path / "sparse")
    source.processor.save_pretrained(tmp_path / "sparse")
    asked = options(str(tmp_path / "sparse"), reviews, tmp_path / "a", sparsity=0.5, split="validation")
    assert run_profile(asked).curves()["mass"].tolist() == profiled.found.curves()["mass"].tolist()


@pytest.mark.parametrize(
    ("parts", "said"), [(("classifier", "bert.pooler"), False), (("bert.encoder.layer.1",), True)]
)
def test_weights_drawn_at_random_are_named_where_they_matter(bert, reviews, tmp_path, parts, said):
    source = load_source(bert, task_of(reviews), None)
    source.model.save_pretrained(tmp_path / "model")
    source.processor.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(parts)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    console = Console(record=True, width=200, file=io.StringIO())
    run_profile(options(str(tmp_path / "model"), reviews, tmp_path / "out"), console)
    text = console.export_text()
    assert (
        "the profile is of randomly initialised weights: the checkpoint lacks bert.encoder" in text
    ) == said
    assert ("random" in text) == said


def test_images(tmp_path):
    found = run_profile(options("builtin:vit", "builtin:digits", tmp_path, examples=20))
    assert len(found.table()) == 4 * 4
    assert (found.table()["rows"] == 20 * 65).all()


def test_on_a_terminal_there_is_a_bar(profiled):
    assert "\nprofiling " in profiled.shown
    assert "100%" in profiled.shown


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sparsity": 0.5, "mass": 0.9}, OptionError, "--sparsity and --mass cannot be combined"),
        ({"sparsity": 1.0}, OptionError, r"--sparsity must be in \[0, 1\), got 1.0"),
        ({"mass": 0.0}, OptionError, r"--mass must be in \(0, 1\], got 0.0"),
        ({"examples": 0}, OptionError, "--examples must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, OptionError, "--batch-size must be a whole number of at least 1, got 0"),
        ({"block_size": -1}, OptionError, "--block-size must be a whole number of at least 1, got -1"),
        ({"max_length": 1}, OptionError, "max_length must be at least 3"),
        ({"dataset": "{here}"}, DataError, "holds no data set"),
        ({"model": "{here}"}, CheckpointError, "is not a model"),
        ({"text_columns": ("words",)}, DataError, "there is no column words"),
        ({"output": "{here}/file"}, OptionError, "output: .*file is a file; expected a folder"),
        ({"output": "{here}/file/deeper"}, OptionError, "output: .*file is a file; expected a folder"),
        ({"save": "{here}"}, OptionError, "--save .* is a folder; expected a file, such as budgets.json"),
        ({"save": "{here}/file/budgets.json"}, OptionError, "save: .*file is a file; expected a folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    bert, reviews, tmp_path, changes, error, message
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("hello")
    given = {"model": bert, "dataset": reviews, "output": str(tmp_path / "out")} | changes
    given = {
        name: value.format(here=here) if isinstance(value, str) else value for name, value in given.items()
    }
    paths = {name: Path(given[name]) for name in ("output", "save") if name in given}
    with pytest.raises(error, match=message):
        run_profile(options(**given | paths))
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "file"]
    assert (here / "file").read_text() == "hello"


def test_a_model_without_the_attention_interface_is_named(bert, reviews, tmp_path):
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "deberta")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "deberta")
    with pytest.raises(
        OptionError, match=r"DebertaV2ForSequenceClassification .* does not compute its attention"
    ):
        run_profile(options(str(tmp_path / "deberta"), reviews, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_budgets_from_the_command_fit_a_profile_of_other_data(bert, reviews, profiled):
    task = task_of(reviews)
    source = load_source(bert, task, None)
    rows = source.encode(task.splits["test"])
    other = crisp.profile(source.model, DataLoader(rows, batch_size=4, collate_fn=source.collate))
    sparsity, mass = other.kept(profiled.budgets)
    with crisp.measuring(source.model) as measured, torch.no_grad():
        crisp.sparsify(source.model, profiled.budgets)
        for batch in DataLoader(rows, batch_size=4, collate_fn=source.collate):
            source.model(**batch)
    assert measured.summary()["sparsity"] == pytest.approx(sparsity, rel=1e-12)
    assert 0 < mass < 1


def test_the_profile_may_be_of_some_classes(bert, reviews, tmp_path):
    terminal = io.StringIO()
    asked = options(bert, reviews, tmp_path / "one", classes=("1",), split="validation")
    one = run_profile(asked, Console(file=terminal, width=200))
    assert "profiling 8 examples of the validation split" in terminal.getvalue()
    assert one.table()["rows"].sum() > 0
