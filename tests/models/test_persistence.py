"""Saved sparse, loaded sparse; loaded dense by accident, said."""

import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

import crisp_attention as crisp
from crisp_attention import CheckpointError, SparseCheckpointLoadedDense, TopK, Window
from crisp_attention.models.notice import restoring
from tests.models.tiny import BATCH, bart, distilbert, logits, sparsity_of


@pytest.fixture
def saved(tmp_path):
    model = crisp.sparsify(
        distilbert(), layers={"1-3": TopK(0.5), "2": Window(3, global_tokens=1)}, phase="eval"
    )
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_what_is_saved_is_a_plain_versioned_dictionary(saved):
    settings = json.loads((saved[1] / "config.json").read_text())["crisp_attention"]
    assert settings["version"] == 1
    assert settings["phase"] == "eval"
    assert settings["layers"]["distilbert.transformer.layer.2.attention"] == {
        "layout": {"name": "window", "width": 3, "global_tokens": 1, "dilation": 1},
        "rule": {"name": "dense"},
    }
    assert len(settings["layers"]) == 3


def test_load_brings_back_the_class_the_layers_and_the_phase(saved):
    model, folder = saved
    loaded = crisp.load(folder)
    assert type(loaded) is type(model)
    assert sparsity_of(loaded) == sparsity_of(model)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.crisp_attention == model.config.crisp_attention


def test_load_finds_a_model_in_a_subfolder_and_refuses_what_it_cannot_honour(saved, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    saved[0].save_pretrained(outer / "inner")
    assert sparsity_of(crisp.load(outer, subfolder="inner")) == sparsity_of(saved[0])
    for refused in ("use_safetensors", "output_loading_info"):
        with pytest.raises(TypeError, match=refused):
            crisp.load(saved[1], **{refused: False})


def test_a_plain_load_is_dense_says_so_and_can_be_restored(saved):
    model, folder = saved
    with pytest.warns(SparseCheckpointLoadedDense, match=r"is dense, .* until crisp_attention\.restore"):
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(plain), logits(distilbert()))
    crisp.restore(plain)
    assert torch.equal(logits(plain), logits(model))


def test_the_base_model_of_a_classifier_can_be_restored_too(saved):
    model, folder = saved
    with pytest.warns(SparseCheckpointLoadedDense):
        base = AutoModel.from_pretrained(folder)
    crisp.restore(base)
    with torch.no_grad():
        expected = model.distilbert(**BATCH).last_hidden_state
        assert torch.equal(base(**BATCH).last_hidden_state, expected)


def test_looking_for_a_tokenizer_is_no_plain_load(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseCheckpointLoadedDense)
        AutoTokenizer.from_pretrained(saved[1])
    with pytest.warns(SparseCheckpointLoadedDense):
        AutoConfig.from_pretrained(saved[1])


@pytest.mark.slow
def test_where_the_package_is_imported_every_plain_load_says_it_and_names_the_callers_line(saved):
    load = f"AutoModel.from_pretrained({str(saved[1])!r})"
    code = f"import crisp_attention\nfrom transformers import AutoModel\n{load}\n{load}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("SparseCheckpointLoadedDense") == 2
    assert "<string>:3: SparseCheckpointLoadedDense" in done.stderr
    assert "<string>:4: SparseCheckpointLoadedDense" in done.stderr


@pytest.mark.parametrize(
    "library", ["/env/lib/python3/site-packages/other/loading.py", r"C:\env\Lib\site-packages\other.py"]
)
def test_the_line_named_is_that_of_the_user_and_not_of_another_library(saved, library):
    there = {"load": lambda: AutoModel.from_pretrained(saved[1])}
    exec(compile("def through():\n    return load()", library, "exec"), there)
    with pytest.warns(SparseCheckpointLoadedDense) as seen:
        there["through"]()
    assert [each.filename for each in seen] == [__file__]


def test_a_program_that_is_itself_installed_is_named_where_it_loads(saved):
    there: dict = {}
    tool = "/env/site-packages/tool.py"
    exec(
        compile(
            f"from transformers import AutoModel\n\ndef load():\n    AutoModel.from_pretrained({str(saved[1])!r})",
            tool,
            "exec",
        ),
        there,
    )
    with (
        pytest.warns(SparseCheckpointLoadedDense) as seen,
        ThreadPoolExecutor(1) as pool,
    ):  # below are packages alone
        pool.submit(there["load"]).result()
    assert [(each.filename, each.lineno) for each in seen] == [(tool, 4)]


@pytest.mark.slow
def test_without_the_package_a_sparse_checkpoint_loads_as_any_other(saved):
    code = f"from transformers import AutoModel; print(type(AutoModel.from_pretrained({str(saved[1])!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DistilBertModel"


def test_a_trainer_checkpoint_is_sparse_and_gives_the_notice(tmp_path):
    model = crisp.sparsify(distilbert(), TopK(0.5))
    examples = [{"input_ids": BATCH["input_ids"][0], "labels": i % 2} for i in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=examples).train()
    folder = tmp_path / "checkpoint-1"
    with pytest.warns(SparseCheckpointLoadedDense):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(crisp.load(folder)), logits(model.eval()))


def test_loading_a_model_that_was_never_sparse_says_that_it_is_dense(tmp_path):
    distilbert().save_pretrained(tmp_path)
    with pytest.warns(SparseCheckpointLoadedDense, match="holds no Crisp settings: the model is dense"):
        crisp.load(tmp_path)
    with pytest.raises(ValueError, match="no Crisp settings to restore"):
        crisp.restore(distilbert())


def test_densified_is_saved_dense(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    crisp.densify(saved[0]).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModel.from_pretrained(folder)


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["crisp_attention"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=99), "must be of version 1, found 99"),
        (lambda s: s.update(layers={}), "damaged"),
        (lambda s: s.update(phase="never"), "damaged.*'never'"),
        (
            lambda s: s["layers"].update(
                {"encoder.9": {"layout": {"name": "full"}, "rule": {"name": "dense"}}}
            ),
            "9",
        ),
        (lambda s: s["layers"].update({"x": {"rule": {"name": "dense"}}}), "exactly the keys"),
        (
            lambda s: s["layers"]["distilbert.transformer.layer.1.attention"]["rule"].update(name="magic"),
            "unknown name 'magic'; the known names are dense, .*topk",
        ),
    ],
)
def test_settings_that_cannot_be_applied_are_an_error_not_a_dense_model(saved, change, message):
    edit(saved[1], change)
    with pytest.raises(ValueError, match=message):
        crisp.load(saved[1])


def test_a_layer_name_that_fits_several_layers_is_refused():
    model = bart()
    crisp.sparsify(model.model.encoder, TopK(0.5), layers=[0])
    settings = model.model.encoder.config.crisp_attention
    crisp.densify(model.model.encoder)
    with restoring():
        model.config.crisp_attention = settings
    with pytest.raises(ValueError, match="matches 2 layers"):
        crisp.restore(model)


def test_a_folder_that_is_no_model_and_damaged_files_are_named(saved, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"is not a model: expected config.json.*found notes.txt"):
        crisp.load(empty)
    with pytest.raises(CheckpointError, match="no such folder"):
        crisp.load(empty / "missing")
    with pytest.raises(CheckpointError, match="is a file"):
        crisp.load(empty / "notes.txt")
    weights = saved[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        crisp.load(saved[1])
    (saved[1] / "config.json").write_text('{"model_type": "distilb')
    with pytest.raises(CheckpointError, match="cannot read a model configuration"):
        crisp.load(saved[1])


def test_pickled_weights_are_never_read(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load a model"):
        crisp.load(folder)
