"""What was learned is in the checkpoint, and comes back from it bit for bit."""

import logging
import warnings

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

import crisp_attention as crisp
from crisp_attention import Entmax, SparseCheckpointLoadedDense, TopK
from tests.contract.families import available
from tests.contract.test_families import run
from tests.models.test_learned import LEARNED, same, taught, values
from tests.models.tiny import BATCH, distilbert, logits

FAMILIES = {family.name: family for family in available()}
RENAMED = [name for name in ("vit", "deit", "beit", "dinov3_vit") if name in FAMILIES]


@pytest.fixture
def saved(tmp_path):
    model = taught(crisp.sparsify(distilbert(), LEARNED, layers=["1-3"]))
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.fixture
def reports():
    """What transformers logs while the test runs."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


def plain(folder, automatic=AutoModelForSequenceClassification):
    """The model as transformers alone loads it: dense."""
    with pytest.warns(SparseCheckpointLoadedDense):
        return automatic.from_pretrained(folder)


def test_load_brings_back_every_value_and_reports_nothing(saved, reports) -> None:
    model, folder = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = crisp.load(folder)
    assert not [report for report in reports if "crisp_learned" in report]
    assert type(loaded) is type(model)
    assert same(values(loaded), values(model))
    assert logits(loaded).equal(logits(model))


def as_saved_before(folder) -> None:
    """Give a checkpoint the names of when only rules had parameters: `crisp_learned.alpha`."""
    weights = load_file(folder / "model.safetensors")
    before = {name.replace("crisp_learned.rule.", "crisp_learned."): each for name, each in weights.items()}
    assert before.keys() != weights.keys()
    save_file(before, folder / "model.safetensors", {"format": "pt"})


def test_names_of_before_are_read(saved) -> None:
    model, folder = saved
    as_saved_before(folder)
    assert same(values(crisp.load(folder)), values(model))
    assert same(values(crisp.restore(plain(folder))), values(model))
    resumed = crisp.sparsify(distilbert(), LEARNED, layers=["1-3"])  # as a Trainer does
    resumed.load_state_dict(load_file(folder / "model.safetensors"))
    assert same(values(resumed), values(model))


def test_a_plain_load_can_be_restored(saved) -> None:
    model, folder = saved
    restored = crisp.restore(plain(folder))
    assert same(values(restored), values(model))
    assert logits(restored).equal(logits(model))


def test_a_base_model_finds_them_under_the_names_of_the_whole(saved) -> None:
    model, folder = saved
    base = crisp.restore(plain(folder, AutoModel))
    prefix = "distilbert."
    assert same({prefix + name: value for name, value in values(base).items()}, values(model))


def test_a_model_with_a_new_head_finds_them_under_the_names_of_the_base_model(saved, tmp_path) -> None:
    model, folder = saved
    base = crisp.restore(plain(folder, AutoModel))
    base.save_pretrained(tmp_path / "base")
    assert same(values(crisp.restore(plain(tmp_path / "base"))), values(model))


@pytest.mark.parametrize("shard", ["4KB", "20KB"])
def test_a_checkpoint_in_parts_brings_them_back(saved, tmp_path, shard) -> None:
    model, _ = saved
    model.save_pretrained(tmp_path / "parts", max_shard_size=shard)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert same(values(crisp.load(tmp_path / "parts")), values(model))
    assert same(values(crisp.restore(plain(tmp_path / "parts"))), values(model))


@pytest.mark.parametrize("name", RENAMED)
def test_families_that_are_saved_under_other_names_bring_them_back(name, tmp_path) -> None:
    model = taught(crisp.sparsify(FAMILIES[name].build(), LEARNED))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        renamed = not set(values(model)) & set(weights.keys())
    assert renamed or Version(transformers.__version__) < Version("5.20")  # older ones keep the names
    for loaded in (crisp.load(tmp_path), crisp.restore(plain(tmp_path, AutoModel))):
        assert same(values(loaded), values(model))
        assert run(FAMILIES[name], loaded).equal(run(FAMILIES[name], model))


@pytest.mark.parametrize("name", [name for name in ("t5", "swin", "whisper") if name in FAMILIES])
def test_families_with_several_stacks_bring_them_back(name, tmp_path) -> None:
    model = taught(
        crisp.sparsify(FAMILIES[name].build(), LEARNED, attention="all" if name == "t5" else "self")
    )
    model.save_pretrained(tmp_path)
    assert same(values(crisp.load(tmp_path)), values(model))


def test_heads_of_which_some_learned_come_back(tmp_path) -> None:
    model = taught(crisp.sparsify(distilbert(), heads={"0": LEARNED, "*": TopK(0.5)}))
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert same(values(loaded), values(model))
    assert logits(loaded).equal(logits(model))


def test_a_subfolder_is_where_they_are_read_from(saved, tmp_path_factory) -> None:
    outer = tmp_path_factory.mktemp("outer")
    saved[0].save_pretrained(outer / "inner")
    assert same(values(crisp.load(outer, subfolder="inner")), values(saved[0]))


def test_a_model_from_elsewhere_has_nothing_to_restore(saved) -> None:
    model, folder = saved
    loaded = plain(folder)
    elsewhere = type(model)(loaded.config)
    elsewhere.name_or_path = elsewhere.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"does not hold distilbert\.transformer\.layer\.1\..*crisp\.load"):
        crisp.restore(elsewhere)


@pytest.mark.parametrize("damage", ["missing", "another layer", "other heads"])
def test_values_that_are_missing_or_do_not_fit_are_an_error(saved, damage) -> None:
    file = saved[1] / "model.safetensors"
    weights = load_file(file)
    key = "distilbert.transformer.layer.2.attention.crisp_learned.rule.alpha"
    value = weights.pop(key)
    if damage == "another layer":
        weights[key.replace(".2.", ".5.")] = value
    if damage == "other heads":
        weights[key] = torch.zeros(3)
    save_file(weights, file, {"format": "pt"})
    wanted = rf"{key}, which this model's attention learned, must be of shape 2, got 3"
    if damage != "other heads":
        wanted = rf"does not hold {key}, which this model's attention learned"
    with pytest.raises(crisp.CheckpointError, match=wanted):
        crisp.load(saved[1])


def test_the_only_value_of_a_checkpoint_is_not_that_of_another_layer(tmp_path) -> None:
    model = taught(crisp.sparsify(distilbert(), LEARNED, layers=[1]))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "distilbert.transformer.layer.1.attention.crisp_learned.rule.alpha"
    weights[key.replace(".1.", ".0.")] = weights.pop(key)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"does not hold {key}"):
        crisp.load(tmp_path)


def test_a_fixed_alpha_has_nothing_in_the_checkpoint(tmp_path) -> None:
    crisp.sparsify(distilbert(), Entmax(1.7)).save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "crisp" in name]


def trainer(model, folder, steps: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_strategy="steps",
        save_steps=3,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        seed=1,
    )
    examples = [{"input_ids": BATCH["input_ids"][0], "labels": i % 2} for i in range(8)]
    return Trainer(model=model, args=arguments, train_dataset=examples)


@pytest.mark.slow
def test_a_training_that_goes_on_from_a_checkpoint_goes_on_with_them(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), LEARNED)
    trainer(model, tmp_path, 6).train()
    halfway = crisp.load(tmp_path / "checkpoint-3")
    assert not same(values(halfway), values(model))
    assert not same(values(halfway), values(crisp.sparsify(distilbert(), LEARNED)))
    resumed = crisp.sparsify(distilbert(), LEARNED)
    trainer(resumed, tmp_path, 6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in values(model).items():
        torch.testing.assert_close(values(resumed)[name], value)


def test_a_variant_of_the_weights_brings_them_back(saved, tmp_path) -> None:
    model, _ = saved
    model.save_pretrained(tmp_path / "half", variant="fp16")
    assert same(values(crisp.load(tmp_path / "half", variant="fp16")), values(model))


def test_restoring_a_model_in_use_keeps_what_it_has_learned_since(saved) -> None:
    model = crisp.load(saved[1])
    with torch.no_grad():
        for value in values(model).values():
            value.add_(1)
    since = {name: value.clone() for name, value in values(model).items()}
    assert same(values(crisp.restore(model)), since)
