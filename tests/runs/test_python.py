"""`crisp.finetune` from Python: values in, a run out, and runs of older versions."""

import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from datasets import Dataset, load_dataset
from packaging.version import Version

import crisp_attention as crisp
from crisp_attention.errors import OptionError
from crisp_attention.runs.card import write_card
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.runs.spec import Data, RunSpec
from crisp_attention.runs.task import Classification
from crisp_attention.schedule import Schedule

SAVED = Path(__file__).parents[1] / "saved" / "runs"
RECIPE = crisp.Recipe(epochs=1, batch_size=8, learning_rate=1e-2, training={"use_cpu": True})
needs_resuming = pytest.mark.skipif(
    Version(transformers.__version__).release < (5, 7), reason="this transformers restores LayerNorm wrongly"
)


@pytest.fixture
def held(reviews):
    return load_dataset(
        "json", data_files={split: f"{reviews}/{split}.jsonl" for split in ("train", "validation")}
    )


def test_a_run_holds_its_metrics_predictions_and_model(bert, held, tmp_path, capsys):
    bars = datasets.are_progress_bars_disabled()
    run = crisp.finetune(
        bert,
        held,
        method=crisp.TopK(0.5),
        schedule=Schedule(0.5, shape="linear"),
        output=tmp_path / "run",
        recipe=RECIPE,
        verbose=False,
    )
    assert capsys.readouterr().err == ""
    assert datasets.are_progress_bars_disabled() == bars
    table = run.predictions()
    assert len(table) == len(held["validation"]) == run.metrics["validation"]["examples"]
    assert run.metrics["validation"]["accuracy"] == pytest.approx(
        (table["prediction"] == table["label"]).mean()
    )
    assert crisp.Run.open(run.directory).metrics == run.metrics
    with pytest.raises(OptionError, match="no predictions of 'test'; it has validation"):
        run.predictions("test")

    model = run.model().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.directory / "model")
    with torch.no_grad():
        logits = model(**tokenizer(held["validation"]["text"][:], padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits.numpy(), np.stack(table["logits"]), atol=1e-5)

    card = (run.directory / "model" / "README.md").read_text()
    seen = run.metrics["validation"]
    row = f"| validation | 16 | {seen['accuracy']:.1%} | {seen['f1']:.3f} | {seen['mcc']:.3f} | {seen['loss']:.4f} |"
    assert row in card
    assert "Method: `topk:sparsity=0.5`." in card
    assert "The sparsity rose from 0 to 0.5 (linear) between 0% and 50% of training." in card
    assert f"Achieved sparsity {run.metrics['achieved_sparsity']:.1%}" in card
    assert "```sh" not in card
    assert transformers.__version__ in card


@needs_resuming
def test_data_in_memory_are_saved_so_that_the_run_can_be_resumed(bert, held, tmp_path, monkeypatch):
    given = {"method": crisp.Dense(), "recipe": RECIPE, "verbose": False}
    whole = crisp.finetune(bert, dict(held), output=tmp_path / "whole", **given)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            crisp.finetune(bert, held, output=tmp_path / "run", **given)
    data = tmp_path / "run" / "data"
    other = {"train": held["train"].select(range(20)), "validation": held["validation"]}
    with pytest.raises(OptionError, match="started with other data"):
        crisp.finetune(bert, other, output=tmp_path / "run", resume=True, **given)
    resumed = crisp.finetune(bert, str(data), output=tmp_path / "run", resume=True, **given)
    pd.testing.assert_frame_equal(resumed.predictions(), whole.predictions())
    monkeypatch.chdir(tmp_path)
    again = crisp.finetune(bert, held, output="run", resume=True, **given)
    assert again.metrics == resumed.metrics
    assert "Dense: the model's own attention." in (whole.directory / "model" / "README.md").read_text()


def test_a_value_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path):
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    for changes, option in (
        ({"layers": ["1"], "method": crisp.Dense()}, "layers"),
        ({"schedule": Schedule(0.5), "method": crisp.TopK(0.8)}, "schedule"),
        ({"seed": -1}, "seed"),
        ({"resume": True, "overwrite": True}, "resume"),
        ({"recipe": crisp.Recipe(training={"weight_decai": 1})}, "training"),
    ):
        with pytest.raises(OptionError) as refused:
            crisp.finetune("/no/model", rows, output=tmp_path / "run", **changes)
        assert refused.value.option == option
    assert not (tmp_path / "run").exists()


@pytest.fixture
def before(tmp_path, monkeypatch):
    """Where the runs of an older version lie; their paths are relative."""
    shutil.copytree(SAVED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    os.utime("interrupted/checkpoints/checkpoint-12")


def test_a_run_of_before_is_read(before):
    run = crisp.Run.open("finished")
    assert (
        run.metrics["validation"]["accuracy"]
        == (run.predictions()["prediction"] == run.predictions()["label"]).mean()
    )
    spec = RunDirectory(run.directory).spec()
    assert spec.method == crisp.Method(rule=crisp.TopK(0.5))
    assert spec.schedule == Schedule(0.5, shape="cubic", begin=0.1, end=0.6)
    assert (spec.recipe.batch_size, spec.recipe.training["load_best_model_at_end"]) == (8, "true")
    assert spec.data.source == "data"


@pytest.mark.slow
@needs_resuming
def test_a_run_of_before_is_resumed_and_ends_as_it_would_have(before):
    spec = RunDirectory(Path("interrupted")).spec()
    run = crisp.finetune(
        spec.model,
        spec.data,
        method=spec.method,
        schedule=spec.schedule,
        recipe=spec.recipe,
        output="interrupted",
        resume=True,
        verbose=False,
    )
    expected = crisp.Run.open("finished")
    for split in ("validation", "test"):
        found, wanted = run.predictions(split), expected.predictions(split)
        np.testing.assert_allclose(np.stack(found["logits"]), np.stack(wanted["logits"]), atol=1e-4)
    assert run.metrics["achieved_sparsity"] == pytest.approx(expected.metrics["achieved_sparsity"], abs=1e-6)


# --- the card


def test_a_card_names_the_hub_and_the_command_and_replaces_none(tmp_path):
    spec = RunSpec(
        model="google/bert", data=Data(source="nyu-mll/glue:cola"), method=crisp.TopK(0.8), metric="mcc"
    )
    scores = {"accuracy": 0.5, "f1": 0.25, "mcc": 0.125, "loss": None, "examples": 1000}
    metrics = {"validation": scores, "metric": "mcc", "steps": 9, "device": "cpu"}
    metrics |= {"achieved_sparsity": 0.75, "kept_mass": 0.9}
    target, command = Classification(("no", "yes")), ["crisp", "finetune", "--output", "my run"]
    write_card(tmp_path, spec, target, metrics, command, images=False)
    card = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["base_model"], header["datasets"]) == ("google/bert", ["nyu-mll/glue"])
    assert header["pipeline_tag"] == "text-classification"
    assert "| validation | 1,000 | 50.0% | 0.250 | 0.125 | not finite |" in card
    assert "The main metric is MCC." in card
    assert "crisp finetune --output 'my run'" in card
    (tmp_path / "README.md").write_text("mine")
    write_card(tmp_path, spec, target, metrics, command, images=False)
    assert (tmp_path / "README.md").read_text() == "mine"
