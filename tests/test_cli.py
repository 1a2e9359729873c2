"""The `crisp` command: help, errors in one line, and what a user sees of a run."""

import errno
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError
from transformers import Trainer

from crisp_attention.cli import main as cli
from crisp_attention.errors import Shortage, shortage

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tuned(crisp_command, bert, reviews, tmp_path):
    """`crisp finetune` on tiny things, with some flags added or replaced."""

    def run(*flags, **changes):
        given = {"model": bert, "dataset": reviews, "output": tmp_path / "run", "epochs": 1} | changes
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return crisp_command("finetune", *words, "--training", "use_cpu=true", *flags)

    return run


# --- help


def test_python_m_is_the_command_too_and_its_help_imports_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['crisp', 'finetune', '--help']\n"
        "try: runpy.run_module('crisp_attention', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: crisp finetune" in done.stdout
    assert done.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize(
    "command", ["finetune", "sweep", "reproduce", "report", "profile", "view", "demo", "bench"]
)
def test_the_help_of_each_command_shows_an_example_and_nothing_of_python(crisp_command, command):
    status, out, _ = crisp_command(command, "--help")
    assert status == 0
    assert any(
        line.strip().removeprefix("For example: ").startswith(f"crisp {command} --")
        for line in out.splitlines()
    )
    assert "None" not in out
    assert "(default: )" not in out


def test_the_example_in_the_help_can_be_parsed():
    from crisp_attention.cli.options import FinetuneOptions

    lines = (FinetuneOptions.__doc__ or "").splitlines()
    example = next(line.split() for line in lines if line.strip().startswith("crisp finetune"))
    assert cli.parse(example[1:]).model == "distilbert-base-uncased"


# --- errors


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (
            ["--method", "magic"],
            {},
            "unknown method 'magic'; the methods are dense, topk,",
        ),
        (["--sparsity", "1.2"], {}, "--method topk: sparsity must be in [0, 1), got 1.2"),
        (["--sparsity", "-0.1"], {}, "[0, 1), got -0.1"),
        (["--method", "dense", "--sparsity", "0.5"], {}, "method 'dense' has no option sparsity"),
        (["--method", "window"], {}, "--method window: "),
        (
            ["--method", "window:width=4"],
            {},
            "width must be an odd whole number of at least 1, got 4",
        ),
        (["--method", "dense", "--layers", "1"], {}, "--layers has no meaning with dense attention"),
        (["--method", "dense", "--phase", "train"], {}, "--phase has no meaning with dense attention"),
        (["--ramp", "0", "0.5"], {}, "--ramp needs a schedule that rises: linear, cosine or cubic"),
        (["--schedule", "cubic", "--ramp", "0.5", "0.2"], {}, "--ramp: begin and end must satisfy"),
        (
            ["--schedule", "cubic", "--method", "window:width=3"],
            {},
            "--schedule needs a method with one sparsity, got window",
        ),
        (["--layers", "9"], {}, "--layers: no layer matched '9'; the layers are: 0 bert.encoder.layer.0"),
        (["--layers", "1-2", "encoder.*.9"], {}, "--layers: no layer matched 'encoder.*.9'"),
        (["--attention", "cross"], {}, "no layer matched: the model has no cross-attention"),
        (
            ["--training", "weight_decai=1"],
            {},
            "--training weight_decai: transformers.TrainingArguments has no",
        ),
        (["--training", "weight_decay"], {}, "--training expects KEY=VALUE, got 'weight_decay'"),
        (["--training", "seed=3"], {}, "--training seed: --seed NUMBER sets it"),
        (["--training", "optim_args=x"], {}, "the run cannot start: ValueError: "),
        (
            ["--max-length", "9"],
            {"model": "builtin:vit", "dataset": "builtin:digits"},
            "--max-length has no meaning for images (image)",
        ),
        (
            ["--metric", "mc"],
            {},
            "--metric must be one of accuracy, f1, mcc, pearson, spearman, rmse, class_accuracy; got 'mc'",
        ),
        (
            ["--metric", "rmse"],
            {},
            "--metric must be accuracy, f1 or mcc for classification, which the labels",
        ),
        (["--batch-size", "0"], {}, "--batch-size must be a whole number of at least 1, got 0"),
        (["--train-examples", "1000"], {}, "expected at most 48 training examples"),
        (
            ["--label-column", "mood"],
            {},
            "there is no column mood; the columns are text (string), label (int64)",
        ),
        (["--overwrite", "--resume"], {}, "--resume cannot be combined with --overwrite"),
        (["--resume"], {}, "--resume: there is no run in"),
        (
            [],
            {"model": "{here}"},
            "is not a model: expected config.json and model.safetensors, found notes.txt",
        ),
        ([], {"model": "{here}/none"}, "no such folder"),
        ([], {"model": "builtin:vit"}, "builtin:vit reads images, the data set holds text (text)"),
        ([], {"dataset": "{here}"}, "holds no data set: expected files named train, validation and test"),
        (
            [],
            {"output": "{here}"},
            "holds files that do not belong to a Crisp run (notes.txt); choose another folder",
        ),
        (["--overwrite"], {"output": "{here}"}, "holds files that do not belong to a Crisp run"),
        ([], {"output": "{here}/notes.txt"}, "is a file; expected a folder"),
        pytest.param(
            [],
            {"output": "/proc/run"},
            "--output /proc/run: /proc is not writable (",
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc"),
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tuned, tmp_path, flags, changes, message):
    here = tmp_path / "here"
    here.mkdir()
    (here / "notes.txt").write_text("hello")
    changes = {name: value.format(here=here) for name, value in changes.items()}
    status, out, err = tuned(*flags, **changes)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]
    assert [entry.name for entry in here.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("fine", 1), ("bad", 1)], "expected at least two classes in train; all 2 rows have the label 1"),
        ([("fine", 1), (" ", 0)], "the train split's column text has no text in 1 of 2 rows"),
    ],
)
def test_data_that_cannot_be_used(tuned, tmp_path, rows, message):
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    status, _, err = tuned(dataset=tmp_path)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err


def test_a_model_without_the_attention_interface_is_named(tuned, bert, tmp_path):
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "deberta")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "deberta")
    status, _, err = tuned(model=tmp_path / "deberta")
    assert status == 2
    assert (
        "DebertaV2ForSequenceClassification (model type 'deberta-v2') does not compute its attention" in err
    )


# --- runs


def test_notes_come_first_then_progress_then_the_table(tuned, tmp_path):
    status, out, err = tuned("--sparsity", "0.5", "--batch-size", "8")
    assert status == 0
    lines = err.splitlines()
    assert lines[0].startswith("model: BertForSequenceClassification, ")
    assert "text column: text; label column: label" in lines
    assert lines[-2] == "examples: 48 train, 16 validation, 16 test"
    assert lines[-1].startswith("epoch 1 of 1, step 6 of 6, loss ")
    for words in (
        "accuracy",
        "validation",
        "achieved sparsity",
        "6 steps in",
        f"everything is in {tmp_path}/run",
    ):
        assert words in out


@pytest.mark.skipif(
    Version(transformers.__version__).release < (5, 7), reason="this transformers restores LayerNorm wrongly"
)
def test_after_an_interruption_the_way_on_is_shown_and_leads_on(tuned, tmp_path, monkeypatch):
    from crisp_attention.runs.progress import RunProgress

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "on_step_end", interrupt)
        status, _, err = tuned("--overwrite")
    assert status == 130
    last = err.splitlines()[-1]
    assert last.startswith("interrupted; to continue: crisp finetune --model ")
    assert last.endswith(" --resume")
    assert "--overwrite" not in last
    status, _, err = tuned("--resume")
    assert status == 0
    assert "continuing from the beginning" in err
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    status, out, err = tuned("--resume")
    assert status == 0
    assert "is already finished" in err
    assert "achieved sparsity" in out
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    status, _, err = tuned()
    assert status == 2
    assert "already holds a finished run; --overwrite replaces it" in err


def test_only_finetune_is_started_by_torchrun(crisp_command, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    status, _, error = crisp_command("demo", "--output", str(tmp_path / "demo"))
    assert status == 2
    assert "only crisp finetune and crisp prune run in several processes" in error
    assert not (tmp_path / "demo").exists()


def test_a_run_that_diverges_says_so_and_no_more(tuned, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        status, out, err = tuned(
            "--learning-rate", "1e30", "--batch-size", "8", "--training", "max_grad_norm=0"
        )
    assert status == 0
    assert "loss nan, validation loss nan, accuracy 0.0%" in err
    assert "the run diverged: logits on validation and test are not finite" in out
    assert "attention: scores are not finite, so sparsity and kept mass have no meaning" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["kept_mass"] is metrics["entropy"] is metrics["validation"]["loss"] is None


def test_a_batch_may_be_larger_than_any_machine_holds(tuned):
    status, out, _ = tuned("--batch-size", "1000000000000")
    assert status == 0
    assert "1 steps in" in out


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            Shortage.DISK,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), Shortage.DISK),
        (
            RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"),
            Shortage.DISK,
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            Shortage.MEMORY,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), Shortage.MEMORY),
        (MemoryError(), Shortage.MEMORY),
        (RuntimeError("unexpected"), None),
    ],
)
def test_what_a_machine_runs_out_of_is_known_from_what_lies_behind_an_error(error, lacking):
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError("unexpected pos 44096 vs 43988") from error
    assert shortage(raised.value) is lacking


def test_what_a_machine_runs_out_of_is_one_line_with_the_way_on(tuned, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("unexpected pos 44096 vs 43988") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(Trainer, "_save_checkpoint", fail)
    status, _, err = tuned()
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: no space is left on the device")
    assert "; to continue: crisp finetune --model " in last


def test_an_error_of_ours_keeps_its_traceback(tuned, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("unexpected")

    monkeypatch.setattr(Trainer, "_save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="unexpected"):
        tuned()
