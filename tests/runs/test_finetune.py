"""A run from options to a complete run directory, on real and on tiny data."""

import io
import json
import os
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from rich.console import Console

import crisp_attention as crisp
from crisp_attention.cli.options import FinetuneOptions
from crisp_attention.errors import OptionError
from crisp_attention.runs import prepare
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.load import read_digits
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.finetune import Run
from crisp_attention.runs.rehearsal import Rehearsed
from crisp_attention.runs.sources import MINILM, load_source
from crisp_attention.runs.spec import Data
from tests.models.tiny import sparsity_of
from tests.runs import small
from tests.runs.tables import task_of, write

METRICS = {
    "metric",
    "validation",
    "test",
    "train",
    "achieved_sparsity",
    "kept_mass",
    "entropy",
    "steps",
    "seconds_per_step",
    "train_seconds",
    "peak_memory_bytes",
    "peak_memory_of",
    "device",
    "kernels",
}


def check_run(run, splits=("validation", "test"), data=()):
    """The folder holds all that a run leaves, and its parts agree with each other and with the data."""
    folder = run.directory
    assert {entry.name for entry in folder.iterdir()} == {
        "config.json",
        "metrics.json",
        "history.csv",
        "measurements.csv",
        "figures",
        "model",
        *data,
        *(f"predictions-{split}.parquet" for split in splits),
    }
    config = json.loads((folder / "config.json").read_text())
    assert set(config["versions"]) >= {"crisp-attention", "torch", "transformers", "datasets"}
    assert set(config["options"]["method"]) == {"layout", "rule"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == run.metrics
    assert set(metrics) == METRICS - {"validation", "test"} | set(splits)
    options = config["options"]
    task = load_task(Data.from_dict(options["data"]))
    words = ("device", "kernels", "peak_memory_of", "metric")
    numbers = {name: value for name, value in metrics.items() if name not in (*splits, "train", *words)}
    assert all(type(value) in (int, float) and value >= 0 for value in numbers.values()), numbers
    for split in splits:
        table = pd.read_parquet(folder / f"predictions-{split}.parquet")
        assert list(table.columns) == ["index", "label", "prediction", "logits"]
        assert table["index"].tolist() == task.splits[split]["index"][:]
        assert table["label"].tolist() == task.splits[split]["labels"][:]
        logits = np.stack(table["logits"])
        assert (logits.argmax(axis=1) == table["prediction"]).all()
        assert metrics[split]["accuracy"] == pytest.approx((table["prediction"] == table["label"]).mean())
        loss = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(table["label"].to_numpy())
        )
        assert metrics[split]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics[split]["examples"] == len(table) == config["task"]["examples"][split]
    assert {each.name for each in (folder / "figures").iterdir()} == {"learning.png", "heads.png"}
    assert not list(folder.glob("model/*.bin"))
    return config, metrics


def predicted(model, run, options):
    """The logits that a model gives on the validation split of a run, in order."""
    task = task_of(options.dataset, train_examples=options.train_examples)
    source = load_source(str(run.directory / "model"), task, options.max_length)
    rows = list(source.encode(task.splits["validation"]))
    model.eval()
    with torch.no_grad():
        batches = [source.collate(rows[at : at + 16]) for at in range(0, len(rows), 16)]
        return torch.cat([model(**batch).logits for batch in batches]).numpy()


def spoken(options):
    console = Console(file=io.StringIO(), width=80)
    run = small.tuned(options, console)
    return run, console.file.getvalue()


@pytest.mark.slow
def test_sst2_with_a_pretrained_encoder(data_folder, tmp_path):
    try:
        distribution(MINILM)
    except PackageNotFoundError:
        reason = f"the package {MINILM} is not installed; `make` installs it"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    for split, count in (("train", 240), ("validation", 64), ("test", 40)):
        rows = pd.read_parquet(data_folder / "sst2" / f"{split}.parquet").head(count)
        (tmp_path / "sst2").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "sst2" / f"{split}.parquet")
    options = FinetuneOptions(
        model="builtin:minilm",
        dataset=str(tmp_path / "sst2"),
        output=tmp_path / "run",
        sparsity=0.8,
        train_examples=200,
        epochs=1,
        learning_rate=3e-4,
        batch_size=8,
        training=("use_cpu=true",),
    )
    run, said = spoken(options)
    config, metrics = check_run(run)
    assert config["options"]["data"]["train_examples"] == 200
    assert config["options"]["method"]["rule"] == {
        "name": "topk",
        "sparsity": 0.8,
        "min_keep": 1,
        "keep": None,
    }
    assert metrics["steps"] == 25
    assert metrics["validation"]["accuracy"] > 0.6
    # every row keeps ceil(0.2 n) of its n keys: at most 80 % are dropped, and less than one key per row short of it
    assert 0.75 < metrics["achieved_sparsity"] < 0.8
    assert 0.2 < metrics["kept_mass"] < 1
    for words in (
        "text column: sentence; label column: label",
        "randomly initialised: classifier.bias, classifier.weight",
        "attention: topk:sparsity=0.8, in 6 of 6 layers",
        "training on 200 of 240 examples",
        "examples: 200 train, 64 validation, 40 test",
        "epoch 1 of 1, step 25 of 25, loss",
    ):
        assert words in said
    assert "{" not in said

    loaded = crisp.load(run.directory / "model")
    assert set(sparsity_of(loaded).values()) == {0.8}
    table = pd.read_parquet(run.directory / "predictions-validation.parquet")
    assert np.abs(predicted(loaded, run, options) - np.stack(table["logits"])).max() < 1e-4


def test_a_run_holds_what_it_measured_and_its_sparsity_is_that_of_k_rounded_up(finished, reviews):
    check_run(finished)
    lengths = [len(line.split()) for line in task_of(reviews).splits["validation"]["text"]]
    valid = np.array([2 + length for length in lengths])  # the tokenizer adds two tokens
    kept = np.ceil(0.3 * valid - 1e-9)
    expected = 1 - (valid * kept).sum() / (valid**2).sum()
    assert finished.metrics["achieved_sparsity"] == pytest.approx(expected, abs=1e-6)


def test_images(tmp_path):
    digits = {split: rows.select(range(40)) for split, rows in read_digits().items()}
    recipe = crisp.Recipe(epochs=1, learning_rate=1e-3, training={"use_cpu": True})
    run = crisp.finetune(
        "builtin:vit",
        digits,
        method=crisp.RandomK(0.8),
        output=tmp_path / "run",
        recipe=recipe,
        verbose=False,
    )
    config, metrics = check_run(run, data=["data"])
    assert config["task"]["image_column"] == "image"
    assert metrics["achieved_sparsity"] == pytest.approx(1 - 13 / 65)


def test_two_text_columns_and_some_layers_in_training_only(bert, tmp_path, pictures):
    rows = [
        {"premise": f"the film is {word}", "claim": f"it was {word}", "label": i % 2}
        for i, word in enumerate(small.WORDS[5:] * 2)
    ]
    data = write(tmp_path, train=rows, validation=rows[:8], test=[row | {"label": -1} for row in rows])
    options = small.options(bert, data, tmp_path / "run", epochs=1, layers=("1-2",), phase="train")
    run, said = spoken(options)
    config, metrics = check_run(run, splits=("validation",))
    assert config["task"]["text_columns"] == ["premise", "claim"]
    assert metrics["achieved_sparsity"] == 0
    assert "the test split has no labels and is left out" in said
    assert "attention: topk:sparsity=0.5, in training only, in 2 of 3 layers" in said
    assert "nothing is dropped" not in said
    for figure in (run.directory / "figures").iterdir():
        drawn = figure.read_bytes()
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) > 10_000


@pytest.mark.parametrize(
    ("block_size", "dense"), [pytest.param(2, False, marks=pytest.mark.slow), (64, True)]
)
def test_a_run_whose_examples_are_too_short_for_its_blocks_says_that_it_is_dense(
    bert, reviews, tmp_path, block_size, dense
):
    method = f"sparse_linear:block_size={block_size}"
    run, said = spoken(small.options(bert, reviews, tmp_path / "run", epochs=1, method=method, sparsity=0.7))
    note = "attention: nothing is dropped, not even of the longest examples: this is dense attention"
    assert (note in " ".join(said.split())) == dense
    assert (run.metrics["achieved_sparsity"] == 0) == dense


def test_a_decoder_without_a_padding_token(reviews, tmp_path):
    options = small.options(
        small.gpt2_without_padding(tmp_path / "gpt2"),
        reviews,
        tmp_path / "run",
        epochs=1,
        method="window:width=5+topk",
    )
    run, said = spoken(options)
    check_run(run)
    assert "attention: window:width=5+topk:sparsity=0.5, in 2 of 2 layers" in said
    loaded = crisp.load(run.directory / "model")
    assert loaded.config.pad_token_id == small.WORDS.index("<end>")
    table = pd.read_parquet(run.directory / "predictions-validation.parquet")
    assert np.abs(predicted(loaded, run, options) - np.stack(table["logits"])).max() < 1e-5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_with_and_without_a_rehearsal_and_another_seed_another(
    bert, reviews, tmp_path, monkeypatch
):
    def table(name, seed):
        run = small.tuned(
            small.options(
                bert, reviews, tmp_path / name, epochs=0.5, seed=seed, method="random", discard_model=True
            )
        )
        return pd.read_parquet(run.directory / "predictions-test.parquet")

    first, other = table("a", 1), table("c", 2)
    monkeypatch.setattr(prepare, "rehearse", lambda *given: Rehearsed(None, drops_nothing=False))
    pd.testing.assert_frame_equal(first, table("b", 1), check_exact=True)
    assert not np.array_equal(np.stack(first["logits"]), np.stack(other["logits"]))


def test_training_and_validation_rows_measured_are_drawn_from_all_classes():
    rows = Dataset.from_dict({"labels": [0] * 50 + [1] * 50})
    assert len(sample(rows, 200)) == 100
    some = sample(rows, 20)["labels"][:]
    assert len(some) == 20
    assert 5 < sum(some) < 15
    assert some == sorted(some)


@pytest.mark.slow
def test_a_run_without_its_model_and_logged_by_tensorboard(bert, reviews, tmp_path):
    run = small.tuned(
        small.options(
            bert, reviews, tmp_path / "run", epochs=1.0, report_to="tensorboard", discard_model=True
        )
    )
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert not (run.directory / "checkpoints").exists()
    assert not (run.directory / "model").exists()
    assert Run.open(run.directory).metrics == run.metrics
    with pytest.raises(OptionError, match="kept no model; keep_model=True keeps it"):
        run.model()
