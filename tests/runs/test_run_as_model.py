"""The folder of a run stands for the model in it, wherever a model is asked for."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import crisp_attention as crisp
from crisp_attention import CheckpointError
from crisp_attention.cli import main as cli
from crisp_attention.errors import OptionError
from crisp_attention.models.notice import SparseCheckpointLoadedDense
from crisp_attention.runs.sources import load_source
from tests.models.tiny import sparsity_of
from tests.runs import small
from tests.runs.tables import task_of


@pytest.fixture
def run(finished) -> Path:
    return finished.directory


@pytest.mark.slow
def test_the_run_of_a_model_that_returns_attention_weights_leaves_one_that_does_not(run):
    model = crisp.load(run / "model")
    assert not model.config.output_attentions
    assert model(torch.tensor([[2, 6, 7, 3]])).attentions is None


def test_load_finds_the_model_in_the_runs_folder(run):
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    found, expected = crisp.load(run), crisp.load(str(run / "model"))
    assert sparsity_of(found) == sparsity_of(expected)
    assert torch.equal(found(ids).logits, expected(ids).logits)
    assert sparsity_of(crisp.load(run, subfolder="model")) == sparsity_of(expected)


def test_training_starts_from_the_weights_of_a_run(run, reviews, tmp_path, monkeypatch):
    words = ["crisp", "finetune", "--model", run, "--dataset", reviews, "--output", tmp_path / "second"]
    words += ["--epochs", 1, "--method", "dense", "--learning-rate", 1e-12, "--training", "use_cpu=true"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    cli.main()
    with pytest.warns(SparseCheckpointLoadedDense, match="holds no Crisp settings"):
        after = crisp.load(tmp_path / "second")
    for name, weight in crisp.load(run).named_parameters():
        torch.testing.assert_close(after.get_parameter(name), weight, rtol=0, atol=1e-9)


def test_the_run_says_that_its_options_replace_what_the_checkpoint_was_saved_with(run, reviews, tmp_path):
    note = (
        "attention: the checkpoint was saved with topk:sparsity=0.7; this run's own options are used instead"
    )
    task = task_of(reviews)
    assert note in load_source(str(run), task, None).notes
    damaged = shutil.copytree(run / "model", tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    for change, message in (({"version": 9}, "must be of version 1, found 9"), ({"phase": 3}, "is damaged")):
        settings = {"crisp_attention": config["crisp_attention"] | change}
        (damaged / "config.json").write_text(json.dumps(config | settings))
        for read in (lambda: load_source(str(damaged), task, None), lambda: crisp.load(damaged)):
            with pytest.raises(CheckpointError, match=message):
                read()


def test_what_profile_and_sweep_load_is_the_runs_model_made_dense(run, reviews):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseCheckpointLoadedDense)
        source = load_source(str(run), task_of(reviews), None)
    assert source.drawn == ()
    assert source.processor.vocab_size == len(small.WORDS)
    assert not hasattr(source.model.config, "crisp_attention")


def test_a_run_without_a_model_is_named_as_such(run, reviews, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    for load in (crisp.load, lambda path: load_source(str(path), task_of(reviews), None)):
        with pytest.raises(CheckpointError, match=r"a run that holds no model: .* or it kept no model"):
            load(tmp_path / "run")


def test_a_model_folder_that_has_a_folder_of_that_name_is_itself_the_model(run):
    model = crisp.load(run)
    model.save_pretrained(run.parent / "both")
    crisp.sparsify(crisp.densify(model), crisp.TopK(0.9)).save_pretrained(run.parent / "both" / "model")
    assert set(sparsity_of(crisp.load(run.parent / "both")).values()) == {0.7}


@pytest.mark.slow
def test_a_fitted_model_is_trained_further_with_what_was_fitted_and_an_unfitted_one_is_refused(
    bert, reviews, tmp_path
):
    method = "sparsefinder:clusters=2+entmax"

    def trained(model, name):
        return small.tuned(
            small.options(model, reviews, tmp_path / name, epochs=1, method=method, sparsity=None)
        )

    with pytest.raises(OptionError, match=r"cannot be trained: .*call crisp\.fit\(model, batches\) first"):
        trained(bert, "unfitted")
    assert not (tmp_path / "unfitted").exists()
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(bert),
        AutoTokenizer.from_pretrained(bert),
    )
    crisp.sparsify(model, crisp.parse(method))
    texts = pd.read_json(Path(reviews) / "train.jsonl", lines=True)["text"].tolist()
    crisp.fit(model, [dict(tokenizer(texts[:16], padding=True, return_tensors="pt"))], progress=False)
    model.save_pretrained(tmp_path / "fitted")
    tokenizer.save_pretrained(tmp_path / "fitted")
    run = trained(str(tmp_path / "fitted"), "run")
    held = {name: value for name, value in model.state_dict().items() if "crisp_learned" in name}
    after = crisp.load(run.directory).state_dict()
    assert len(held) > 1
    assert all(after[name].equal(value) for name, value in held.items())
    assert not after["classifier.weight"].equal(model.classifier.weight)
