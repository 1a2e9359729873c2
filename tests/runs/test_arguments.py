"""TrainingArguments from options, and every way to get `training` wrong."""

import re
from pathlib import Path

import pytest
import torch

from crisp_attention.errors import OptionError
from crisp_attention.runs import arguments as arguments_module
from crisp_attention.runs.arguments import training_arguments
from tests.runs import small


def made(tmp_path, *training, **changes):
    changes["training"] = ("use_cpu=true", *training)
    return training_arguments(
        small.spec(small.options("m", "d", Path("out"), **changes)), tmp_path / "checkpoints"
    )


def test_options_and_defaults_arrive(tmp_path):
    arguments = made(tmp_path, epochs=2.5, batch_size=7, learning_rate=3e-4, seed=11)
    assert arguments.output_dir == str(tmp_path / "checkpoints")
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (2.5, 7)
    assert (arguments.learning_rate, arguments.seed) == (3e-4, 11)
    assert arguments.per_device_eval_batch_size == 14
    assert arguments.train_sampling_strategy == "group_by_length"
    assert arguments.disable_tqdm


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("weight_decay=0.01", 0.01),
        ("gradient_accumulation_steps=4", 4),
        ("load_best_model_at_end=true", True),
        ("load_best_model_at_end=False", False),
        ("lr_scheduler_type=cosine", "cosine"),
        ('lr_scheduler_kwargs={"num_cycles": 2}', {"num_cycles": 2}),
        ("save_total_limit=None", None),
        ("project=a=b", "a=b"),
        ("per_device_eval_batch_size=3", 3),
    ],
)
def test_any_other_field_by_its_own_type(tmp_path, pair, value):
    assert getattr(made(tmp_path, pair), pair.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("weight_decay", "training expects KEY=VALUE, got 'weight_decay'"),
        ("=3", "training expects KEY=VALUE, got '=3'"),
        ("weight_decai=1", "training weight_decai: transformers.TrainingArguments has no such field"),
        ("weight_decay=much", "training weight_decay: invalid float value: 'much'"),
        (
            "load_best_model_at_end=perhaps",
            "training load_best_model_at_end: Truthy value expected: got perhaps",
        ),
        ("eval_strategy=sometimes", "training eval_strategy: invalid choice: 'sometimes' (choose from"),
        ("learning_rate=1", "training learning_rate: learning_rate=NUMBER sets it"),
        ("output_dir=x", "training output_dir: the run has its own folder"),
        ("remove_unused_columns=true", "training remove_unused_columns: the run sets it itself"),
        ("prediction_loss_only=true", "prediction_loss_only: the run keeps the prediction of every example"),
        ("batch_eval_metrics=true", "batch_eval_metrics: the run keeps the prediction of every example"),
        ("eval_do_concat_batches=false", "eval_do_concat_batches: the run keeps the predictions of all"),
        ("dataloader_drop_last=true", "dataloader_drop_last: the run evaluates every example"),
        ("label_names=label", "label_names: the labels are the data's label column"),
        ("restore_callback_states_from_checkpoint=true", "the run restores what it needs itself"),
        ("dataloader_multiprocessing_context=spawn", "the run's batches can only be made by forked workers"),
        ("debug=underflow_overflow", "debug: its overflow check fails on boolean masks"),
        ("per_device_eval_batch_size=0", "training per_device_eval_batch_size must be at least 1, got 0"),
        ("gradient_accumulation_steps=0", "training gradient_accumulation_steps must be at least 1, got 0"),
        ("max_steps=0", "training max_steps must be at least 1, or -1 to train by epochs; got 0"),
        (
            "train_sampling_strategy=batch_rebalance",
            "batch_rebalance uses the same order of examples with every",
        ),
        (
            "metric_for_best_model=bleu",
            "metric_for_best_model must be loss, accuracy, f1, mcc, pearson, spearman, rmse, class_accuracy; got bleu",
        ),
        ("dataloader_persistent_workers=true", "dataloader_persistent_workers needs dataloader_num_workers"),
        ("accelerator_config=/none.json", "training: FileNotFoundError: "),
    ],
)
def test_what_training_does_not_take(tmp_path, pair, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        made(tmp_path, pair)


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_what_transformers_cannot_do_here_is_one_line(tmp_path, monkeypatch, kind):
    def refuse(**given):
        raise kind("\nneeds a package\nand more words")

    refuse.__dataclass_fields__ = arguments_module.TrainingArguments.__dataclass_fields__
    monkeypatch.setattr(arguments_module, "TrainingArguments", refuse)
    with pytest.raises(OptionError, match=rf"^training: {kind.__name__}: needs a package$"):
        training_arguments(small.spec(small.options("m", "d", Path("out"), training=())), tmp_path)


def test_liger_kernels_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments_module, "is_liger_kernel_available", lambda: False)
    with pytest.raises(OptionError, match="use_liger_kernel needs the package liger-kernel"):
        made(tmp_path, "use_liger_kernel=true")


def test_several_processes_need_even_batches(tmp_path, monkeypatch):
    uneven = 'accelerator_config={"even_batches": false}'
    assert not made(tmp_path, uneven).accelerator_config.even_batches
    monkeypatch.setattr(arguments_module.TrainingArguments, "world_size", 2)
    made(tmp_path)
    with pytest.raises(OptionError, match="even_batches must be true with several processes, got false"):
        made(tmp_path, uneven)


def test_memory_is_pinned_for_cuda_alone(tmp_path, monkeypatch):
    assert not made(tmp_path).dataloader_pin_memory
    cuda = property(lambda self: torch.device("cuda:0"))
    monkeypatch.setattr(arguments_module.TrainingArguments, "device", cuda)
    assert made(tmp_path).dataloader_pin_memory
    assert not made(tmp_path, "dataloader_pin_memory=false").dataloader_pin_memory


@pytest.mark.parametrize(
    ("metric", "training", "best", "greater"),
    [
        (None, (), None, None),
        (None, ("load_best_model_at_end=true",), "loss", False),
        ("accuracy", (), "accuracy", True),
        ("rmse", ("load_best_model_at_end=true",), "rmse", False),
        ("rmse", ("metric_for_best_model=eval_spearman",), "eval_spearman", True),
        ("mcc", ("metric_for_best_model=loss",), "loss", False),
        ("mcc", ("greater_is_better=false",), "mcc", False),
    ],
)
def test_the_best_checkpoint_is_that_of_the_metric(tmp_path, metric, training, best, greater):
    found = made(tmp_path, "use_cpu=true", *training, metric=metric)
    assert (found.metric_for_best_model, found.greater_is_better) == (best, greater)
