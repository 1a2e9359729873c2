"""Pruning as a command, in a folder, interrupted, and compared in a study."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

import crisp_attention as crisp
from crisp_attention.cli.finetune import run_finetune
from crisp_attention.cli.main import as_typed, parse
from crisp_attention.cli.prune import run_prune, spec_of
from crisp_attention.cli.sweep import plan_of, run_sweep
from crisp_attention.errors import CrispError, OptionError
from crisp_attention.runs.pruning import LEARNING_RATE
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.studies.analysis import analyse
from tests.runs.pruning import topics
from tests.runs.test_resume import needs_resuming

TRAINING = ["--training", "use_cpu=true", "--batch-size", "8", "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("topics")
    return topics.model(folder / "model"), topics.data(folder / "data")


def words(made: tuple[str, str], output: Path, *more: str) -> list[str]:
    model, data = made
    given = ["prune", "--model", model, "--dataset", data, "--classes", "film,plot", "--output", str(output)]
    return [*given, "--target", "0.7", "--block-size", "8", "--steps", "3", "--epochs", "2", *TRAINING, *more]


def test_the_folder_holds_everything_about_the_run(made, tmp_path: Path, capsys) -> None:
    run_prune(parse(words(made, tmp_path / "run")), Console(quiet=True))
    run = crisp.Run.open(tmp_path / "run")
    assert 0.7 <= run.metrics["achieved_sparsity"] < 0.75
    assert run.metrics["metric"] == "class_accuracy"
    for part in ("before", "validation", "test"):
        assert {"class_accuracy", "among_classes", "accuracy"} <= set(run.metrics[part])
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    seen = history.dropna(subset=["eval_class_accuracy"])
    assert seen["epoch"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert history["sparsity"].is_monotonic_increasing
    layers = pd.read_csv(tmp_path / "run" / "layers.csv")
    weights = dict(run.model().named_parameters())
    for name, share in zip(layers["name"], layers["sparsity"], strict=True):
        assert share == pytest.approx(float((weights[f"{name}.weight"] == 0).float().mean()))
    printed = capsys.readouterr().out
    assert "What pruning saves on this machine" in printed
    assert "not compressed: " in printed or "compressed model: " in printed


def test_two_seeds_prune_for_the_classes_that_each_draws(made, tmp_path: Path) -> None:
    given = words(made, tmp_path / "run", "--discard-model", "--overwrite")
    at = given.index("--classes")
    given[at : at + 2] = ["--draw-classes", "2"]
    drawn = []
    for seed in ("0", "3"):
        run_prune(parse([*given, "--seed", seed]), Console(quiet=True))
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        drawn.append(config["task"]["classes"])
    assert drawn[0] != drawn[1]


def test_attention_is_made_sparse_in_the_same_run(made, tmp_path: Path, capsys) -> None:
    run_prune(parse(words(made, tmp_path / "run", "--method", "topk:sparsity=0.5")), Console(quiet=True))
    run = crisp.Run.open(tmp_path / "run")
    assert 0.3 < run.metrics["attention"]["achieved_sparsity"] < 0.6
    assert run.metrics["achieved_sparsity"] >= 0.7
    assert crisp.is_sparse(run.model())
    assert (tmp_path / "run" / "attention.csv").is_file()
    assert "of the pairs are dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "0.3"], "target must be within the pattern's reach, got 0.3; 2:4 in blocks of 8"),
        (["--attention", "0.7"], "target cannot be combined with attention, feed_forward or convolution"),
        (["--target", "1.5"], r"target must be in \[0, 1\), got 1.5"),
        (["--pattern", "2;4"], "pattern must be N:M with N below M"),
        (["--steps", "0"], "steps must be"),
        (["--saliency", "magnitude", "--gradients", "all"], "gradients all has no meaning with saliency"),
        (["--classes", "film,film"], "classes names film twice: expected each class once, got film, film"),
    ],
)
def test_what_cannot_be_writes_nothing(made, tmp_path: Path, more, message: str) -> None:
    with pytest.raises(CrispError, match=message):
        run_prune(parse([*words(made, tmp_path / "run"), *more]), Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "0.8"], "--target was 0.7, is 0.8"),
        (["--steps", "4"], "--epochs was 6.0 in all, is 8.0 in all; --steps was 3, is 4"),
        (["--classes", "film,good"], "--classes was film plot, is film good"),
        (
            ["--saliency", "signed", "--score-kept"],
            "--saliency was taylor, is signed; --score-kept was not given, ",
        ),
        (["--skip", "*.key"], "--skip was not given, is *.key"),
        (["--method", "topk:sparsity=0.5"], "--method was dense, is topk:sparsity=0.5"),
    ],
)
def test_another_run_is_not_resumed_and_the_options_that_differ_are_named(
    made, tmp_path: Path, more, message: str
) -> None:
    RunDirectory(tmp_path / "run").claim(spec_of(parse(words(made, tmp_path / "run"))), {})
    options = parse([*words(made, tmp_path / "run", "--resume"), *more])
    with pytest.raises(OptionError) as refused:
        run_prune(options, Console(quiet=True))
    said = as_typed(refused.value, options)
    assert said.startswith(f"--resume: the run in {tmp_path / 'run'} was started with other options: ")
    assert message in said
    assert "Pruning(" not in said


def test_a_learning_rate_that_is_not_given_is_that_of_the_resumed_run_or_larger_than_in_fine_tuning(
    made, tmp_path: Path
) -> None:
    given = words(made, tmp_path / "run")
    at = given.index("--learning-rate")
    del given[at : at + 2]
    assert spec_of(parse(given)).recipe.learning_rate == LEARNING_RATE == 1e-3
    before = spec_of(parse([*given, "--learning-rate", "2e-5"]))
    RunDirectory(tmp_path / "run").claim(before, {})
    assert spec_of(parse([*given, "--resume"])) == before
    assert spec_of(parse([*given, "--overwrite"])).recipe.learning_rate == LEARNING_RATE
    assert spec_of(parse([*given, "--resume", "--learning-rate", "1e-3"])).recipe.learning_rate == 1e-3


def test_training_a_pruned_model_on_says_that_zeros_are_lost(made, tmp_path: Path) -> None:
    run_prune(parse(words(made, tmp_path / "run")), Console(quiet=True))
    terminal = io.StringIO()
    given = [
        "finetune",
        "--model",
        str(tmp_path / "run"),
        "--dataset",
        made[1],
        "--method",
        "dense",
        "--epochs",
        "1",
    ]
    run_finetune(
        parse([*given, *TRAINING, "--output", str(tmp_path / "on")]), Console(file=terminal, width=200)
    )
    assert "of the checkpoint's weights are zero, and training changes them" in terminal.getvalue()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--classes", "film,plot,good", "--treatment", "prune:block_size=8:gradients=random"],
            "there are 1 others",
        ),
        (
            ["--classes", "film", "--treatment", "prune:block_size=8", "--recipe", "prune:epochs=x"],
            "expects a number",
        ),
    ],
)
def test_a_study_that_cannot_be_says_so_before_it_begins(made, tmp_path: Path, more, message: str) -> None:
    given = [
        "sweep",
        "--model",
        made[0],
        "--dataset",
        made[1],
        "--output",
        str(tmp_path / "study"),
        *TRAINING,
    ]
    with pytest.raises(CrispError, match=message):
        run_sweep(parse([*given, "--sparsity", "0.7", *more]), Console(quiet=True))
    assert not (tmp_path / "study" / "study.json").exists()


def test_a_recipe_may_be_for_one_kind_of_pruning(made) -> None:
    given = ["sweep", "--model", made[0], "--dataset", made[1], "--output", "x", "--classes", "film"]
    given += ["--treatment", "prune:block_size=8:sparsity=0.7,prune:sparsity=0.8"]
    plan, _ = plan_of(parse([*given, "--recipe", "prune:block_size=8:sparsity=0.7:epochs=9"]))
    assert [each.recipe.epochs for each in plan.configurations] == [3, 9, 3]


@needs_resuming
@pytest.mark.slow
@pytest.mark.parametrize("ste", ["none", "sr-ste"])
def test_killed_and_resumed_it_prunes_the_same_weights(made, tmp_path: Path, ste: str) -> None:
    def command(folder: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "crisp_attention", *words(made, folder, "--ste", ste, *more)]

    process = subprocess.Popen(
        command(tmp_path / "killed", "--epochs", "20"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "killed" / "checkpoints"
    # the second: whatever is half-written of it, the first is whole
    while len(list(checkpoints.glob("checkpoint-*/trainer_state.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(
        command(tmp_path / "killed", "--epochs", "20", "--resume"), check=True, capture_output=True
    )
    subprocess.run(command(tmp_path / "undisturbed", "--epochs", "20"), check=True, capture_output=True)
    killed, undisturbed = (
        dict(crisp.Run.open(tmp_path / name).model().named_parameters()) for name in ("killed", "undisturbed")
    )
    for name, each in killed.items():
        assert torch.equal(each, undisturbed[name]), name


@pytest.mark.slow
def test_a_study_compares_on_the_classes_of_each_seed(made, tmp_path: Path) -> None:
    model, data = made
    study = crisp.sweep(
        model,
        crisp.Data(source=data, draw_classes=2),
        [
            Pruning(sparsity=0.7, block_size=8, steps=2),
            Pruning(sparsity=0.7, block_size=8, steps=2, gradients="random"),
        ],
        output=tmp_path / "study",
        seeds=3,
        recipe=crisp.Recipe(epochs=4, batch_size=8, learning_rate=5e-3, training={"use_cpu": True}),
        verbose=False,
    )
    found = analyse(study.folder)
    assert found.metric.name == "class_accuracy"
    pruned = found.lines[1]
    assert pruned.to_dense is not None
    assert pruned.to_random is not None
    expected = []
    for seed in range(3):
        ours, dense = (
            crisp.Run.open(study.folder.directory(line.configuration, seed).path)
            for line in (pruned, found.lines[0])
        )
        classes = json.loads((ours.directory / "config.json").read_text())["task"]["classes"]
        scores = []
        for run in (ours, dense):
            table = run.predictions("test")
            counted = table[table["label"].isin(classes)]
            scores.append((counted["label"] == counted["prediction"]).mean())
        expected.append(scores[0] - scores[1])
    assert pruned.to_dense.difference.mean == pytest.approx(sum(expected) / 3)
    page = study.report().read_text()
    assert "difference from gradients of random classes" in page
