"""What a run could only fail in later is found before it, and finding it changes nothing."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    DebertaV2Config,
    MPNetConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from crisp_attention.errors import OptionError
from crisp_attention.insight import measuring
from crisp_attention.methods.rules import TopK
from crisp_attention.models.apply import sparsify
from crisp_attention.runs import rehearsal
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.prepare import build
from crisp_attention.runs.rehearsal import rehearse
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.sources.encoding import encoded
from tests.runs import small
from tests.runs.small import BODY
from tests.runs.tables import task_of


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    """Its batch normalisation keeps running means, and has one value per channel for one image."""
    folder = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def prepared(options):
    task = task_of(options.dataset, train_examples=options.train_examples)
    source = load_source(options.model, task, options.max_length)
    if options.method != "dense":
        sparsify(source.model, TopK(0.5))
    task = encoded(source, task)
    trainer, _ = build(source, task, training_arguments(small.spec(options), options.output / "checkpoints"))
    return trainer, source, task


def test_a_trainer_that_is_built_touches_nothing_that_processes_share(bert, reviews, tmp_path, monkeypatch):
    made, mkdir = [], os.mkdir
    monkeypatch.setattr(
        os, "mkdir", lambda path, *rest, **named: (made.append(path), mkdir(path, *rest, **named))[1]
    )
    trainer, _, _ = prepared(small.options(bert, reviews, tmp_path / "runs" / "one"))
    assert made  # what a Trainer makes, in a folder of its own
    assert not [path for path in made if Path(os.fsdecode(path)).is_relative_to(tmp_path)]
    assert trainer.args.output_dir == str(tmp_path / "runs" / "one" / "checkpoints")


@pytest.mark.parametrize("training", [(), ("activation_checkpointing=true",)])
def test_models_and_generators_stay_as_they_were(bert, reviews, resnet, tmp_path, training):
    for model, data, method in ((bert, reviews, "topk"), (resnet, "builtin:digits", "dense")):
        if method == "dense" and training:
            continue
        trainer, source, task = prepared(
            small.options(model, data, tmp_path / "run", method=method, training=("use_cpu=true", *training))
        )

        def state(trainer=trainer, source=source):
            model = source.model
            tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            modes = [module.training for module in model.modules()]
            generators = (
                random.getstate(),
                np.random.get_state()[1].tolist(),
                torch.get_rng_state().tolist(),
            )
            grads = [parameter.grad for parameter in model.parameters()]
            return (
                tensors,
                modes,
                generators,
                grads,
                model.is_activation_checkpointing,
                dict(trainer.optimizer.state),
            )

        before = state()
        assert (rehearse(trainer, source, task).unmeasured is None) == (method == "topk")
        after = state()
        assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        assert before[1:] == after[1:]
        assert not any(grad is not None for grad in after[3])


@pytest.mark.parametrize("config", [
    DebertaV2Config(**BODY, relative_attention=True, pos_att_type=["p2c", "c2p"]), pytest.param(
        MPNetConfig(**BODY, pad_token_id=0), marks=pytest.mark.slow, id="mpnet"
    ), pytest.param(small.fnet(), marks=pytest.mark.slow, id="fnet"),
], ids=lambda config: config.model_type)  # fmt: skip
def test_a_dense_model_that_cannot_be_looked_into_is_trained_all_the_same(
    tmp_path, reviews, config, crisp_command
):
    model = small.saved(tmp_path / "model", config)
    words = ["--model", model, "--dataset", reviews, "--output", tmp_path / "run", "--method", "dense"]
    status, out, err = crisp_command("finetune", *words, "--epochs", 1, "--training", "use_cpu=true")
    assert status == 0, err
    assert "attention: dense, the model's own; sparsity and kept mass were not measured" in out
    assert "kept mass 100.0%" not in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["achieved_sparsity"], metrics["kept_mass"], metrics["entropy"]) == (0, 1, None)
    assert metrics["validation"]["examples"] == 16
    assert "attention: dense, not measured: " in err
    assert not (tmp_path / "run" / "measurements.csv").exists()
    with pytest.raises(
        OptionError, match="does not compute its attention through transformers' attention interface"
    ):
        small.tuned(small.options(model, reviews, tmp_path / "sparse"))
    assert not (tmp_path / "sparse").exists()


def test_what_only_measuring_cannot_do(bert, reviews, tmp_path, monkeypatch):
    def refuse(*given):
        raise NotImplementedError("BertSelfAttention passes magic to its attention")

    monkeypatch.setattr(measuring.Measurement, "observe", refuse)
    with pytest.raises(
        OptionError, match=r"BertForSequenceClassification cannot be measured: .* passes magic"
    ):
        small.tuned(small.options(bert, reviews, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    dense = prepared(small.options(bert, reviews, tmp_path / "run", method="dense", sparsity=None))
    assert rehearse(*dense).unmeasured.startswith("BertForSequenceClassification cannot be measured: ")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("which", ["longest", "shortest"])
def test_the_longest_and_the_shortest_texts_are_tried(tmp_path, bert, split, which):
    """Longer than those of other splits or shorter, and with one of their own length only, far from the first."""
    data = small.reviews(tmp_path / "data")
    file = tmp_path / "data" / f"{split}.jsonl"
    odd = "film " * 30 if which == "longest" else "film"
    file.write_text(file.read_text() + json.dumps({"text": odd.strip(), "label": 0}) + "\n")
    trainer, source, task = prepared(small.options(bert, data, tmp_path / "run"))

    def refuse(module, args, kwargs):
        if kwargs["input_ids"].shape[1] in (3, 32):
            raise RuntimeError("odd length")

    source.model.register_forward_pre_hook(refuse, with_kwargs=True)
    doing = "be trained" if split == "train" else f"read the {split} split"
    with pytest.raises(
        OptionError, match=f"^BertForSequenceClassification cannot {doing}.*: RuntimeError: odd length$"
    ):
        rehearse(trainer, source, task)


@pytest.mark.slow
def test_a_last_batch_of_one_image_under_batch_normalisation(resnet, tmp_path):
    for examples, works in ((17, False), (18, True)):
        options = small.options(
            resnet, "builtin:digits", tmp_path / "run", method="dense", train_examples=examples
        )
        given = prepared(options)
        if works:
            rehearse(*given)
        else:
            with pytest.raises(
                OptionError,
                match="trained on the single example that is left for the last batch with batch_size=8",
            ):
                rehearse(*given)


def test_a_model_that_cannot_be_saved(bert, reviews, tmp_path, monkeypatch):
    trainer, source, task = prepared(small.options(bert, reviews, tmp_path / "run"))
    source.model.config.output_attentions = False
    source.model.config._output_attentions = True  # as a change after loading would leave it
    with pytest.raises(OptionError, match="cannot be saved: "):
        rehearse(trainer, source, task)
    assert rehearsal.FEW < 8
