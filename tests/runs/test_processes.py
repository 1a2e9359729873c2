"""Several processes do what one does, and speak with one voice."""

import json
import os
import signal
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest

from tests.runs import small

# 41 examples: the sixth step of an epoch has one, and so has the second batch of an evaluation of 17
TRAIN, OTHER, STEPS = 41, 17, 18
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
INTERRUPTING = """
from crisp_attention.cli import main as cli
from crisp_attention.runs.progress import RunProgress

def stop(self, args, state, control, **kwargs):
    if state.global_step == 11:
        raise KeyboardInterrupt

RunProgress.on_step_end = stop
cli.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Nothing in it is drawn at random in training, and its predictions differ from example to example."""
    folder = tmp_path_factory.mktemp("bert")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    return small.bert(folder, **still)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return small.reviews(tmp_path_factory.mktemp("reviews"), train=TRAIN, other=OTHER)


@pytest.fixture
def words(model, uneven, tmp_path):
    """The command line of a run in the folder of that name, with flags added."""

    def of(name, *flags, model=model, training=()):
        given = {"model": model, "dataset": uneven, "output": tmp_path / name, "learning-rate": 3e-3}
        fields = ("use_cpu=true", "logging_steps=1", *training)
        return [
            "finetune",
            *(str(word) for flag, value in given.items() for word in (f"--{flag}", value)),
            *(word for field in fields for word in ("--training", field)),
            *flags,
        ]

    return of


@pytest.fixture
def alone(model, uneven, tmp_path):
    """Runs in this process what the two do together, with batches twice as large."""

    def run(**changes):
        training = ("use_cpu=true", "logging_steps=1", *changes.pop("training", ()))
        wanted = {"batch_size": 8, "learning_rate": 3e-3, "sparsity": None} | changes
        return small.tuned(small.options(model, uneven, tmp_path / "alone", training=training, **wanted))

    return run


def environment(**changes):
    return {**os.environ, "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), **changes}


def together(*command, status=0):
    done = subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def side_by_side(words):
    """Two processes that no launcher stops: each one's exit status, standard output and error."""
    port = str(29600 + os.getpid() % 10_000)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "crisp_attention", *words],
            env=environment(**shared, RANK=rank, LOCAL_RANK=rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [each.communicate(timeout=100) for each in both]
    return [(each.returncode, *words) for each, words in zip(both, said, strict=True)]


def equal(folder, run):
    """What two processes left in the folder is what the run in one process left, up to rounding."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("validation", "test", "train"):
        assert metrics[name] == pytest.approx(run.metrics[name], abs=2e-6), name
    for name in ("achieved_sparsity", "kept_mass", "entropy", "steps"):
        assert metrics[name] == pytest.approx(run.metrics[name], abs=2e-6), name
    there = {entry.name for entry in folder.iterdir()}
    assert there == {entry.name for entry in run.directory.iterdir()}
    for split in ("validation", "test"):
        mine, its = (
            pd.read_parquet(path / f"predictions-{split}.parquet") for path in (folder, run.directory)
        )
        assert mine["index"].tolist() == its["index"].tolist() == list(range(OTHER))
        assert mine["label"].tolist() == its["label"].tolist()
        logits = [np.stack(table["logits"]) for table in (mine, its)]
        assert np.ptp(logits[0][:, 0]) > 0.01
        np.testing.assert_allclose(*logits, atol=2e-5)
    for file in ("measurements.csv", "history.csv"):
        tables = [pd.read_csv(path / file) for path in (folder, run.directory)]
        own = [name for name in tables[0] if name.endswith(("runtime", "per_second", "flos", "train_loss"))]
        tables = [table.drop(columns=own) for table in tables]
        pd.testing.assert_frame_equal(*tables, check_like=True, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_load_the_checkpoint_that_one_loads(words, alone, tmp_path):
    best = ("load_best_model_at_end=true", "save_total_limit=1", "lr_scheduler_type=constant")
    flags = ("--batch-size", "4", "--sparsity", "0.5", "--schedule", "cubic", "--ramp", "0.1", "0.5")
    out, err = together(*TORCHRUN, "-m", "crisp_attention", *words("two", *flags, training=best))
    run = alone(sparsity=0.5, schedule="cubic", ramp=(0.1, 0.5), training=best)
    assert run.metrics["steps"] == STEPS
    equal(tmp_path / "two", run)
    assert out.count("everything is in") == 1
    assert err.count("examples: 41 train, 17 validation, 17 test") == 1
    assert err.count("epoch 3 of 3, step 18 of 18") == 1
    assert "Warning" not in err
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2
    (loaded,) = [line for line in err.splitlines() if line.startswith("loaded checkpoint-")]
    history = pd.read_csv(tmp_path / "two" / "history.csv").dropna(subset="eval_loss").set_index("step")
    final = history[history["sparsity"] == 0.5]["eval_loss"]
    assert loaded == f"loaded checkpoint-{final.idxmin()}, the best by loss"


@pytest.mark.slow
def test_a_folder_that_is_taken_is_said_once_by_the_main_process(words, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("hello")
    (status, _, said), (other_status, _, other) = side_by_side(words("taken"))
    assert (status, other_status, other) == (2, 2, "")
    (line,) = said.splitlines()
    assert line.startswith("error: --output ")
    assert line.endswith("holds files that do not belong to a Crisp run (notes.txt); choose another folder")
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
def test_learned_parameters_checkpointing_smoothing_random_order_accumulation_and_workers(
    words, alone, tmp_path
):
    method = "entmax:alpha=learned"
    training = (
        "gradient_checkpointing=true",
        "label_smoothing_factor=0.1",
        "train_sampling_strategy=random",
        "gradient_accumulation_steps=2",
        "dataloader_num_workers=1",
    )
    flags = ("--batch-size", "4", "--method", method)
    together(*TORCHRUN, "-m", "crisp_attention", *words("two", *flags, training=training))
    equal(tmp_path / "two", alone(training=training, method=method))


@pytest.mark.slow
def test_a_run_interrupted_within_an_epoch_goes_on_with_all_that_is_drawn_at_random(words, bert, tmp_path):
    saving = {"training": ("save_strategy=steps", "save_steps=4"), "model": bert}
    flags = ("--batch-size", "4", "--method", "random")
    crisp = (*TORCHRUN, "-m", "crisp_attention")
    together(*crisp, *words("undisturbed", *flags, **saving))
    script = tmp_path / "interrupting.py"
    script.write_text(INTERRUPTING)
    _, err = together(*TORCHRUN, script, *words("broken", *flags, **saving), status=1)
    assert err.count("interrupted; to continue: torchrun --nproc-per-node 2 -m crisp_attention finetune") == 1
    assert "KeyboardInterrupt" not in err
    checkpoint = tmp_path / "broken" / "checkpoints" / "checkpoint-8"
    assert {file.name for file in checkpoint.glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    _, err = together(*crisp, *words("broken", *flags, "--resume", **saving))
    assert err.count("continuing from checkpoint-8") == 1
    for split in ("validation", "test"):
        tables = [
            pd.read_parquet(tmp_path / name / f"predictions-{split}.parquet")
            for name in ("undisturbed", "broken")
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_interrupting_the_launcher_ends_the_run_and_says_so_once(words, tmp_path):
    launcher = subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "crisp_attention", *words("run", "--epochs", "500")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in launcher.stderr:
        if line.startswith("epoch 2 of 500"):
            break
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=60)
    assert err.count("interrupted; to continue: torchrun --nproc-per-node 2") == 1
    assert "KeyboardInterrupt" not in err
    assert (tmp_path / "run" / "checkpoints").is_dir()
