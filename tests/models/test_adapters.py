"""An adapter trained on a sparse model comes back on a sparse one, or says that it did not."""

import copy
import inspect
import json
import warnings

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForSequenceClassification,
    TaskType,
    get_peft_model,
)
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import crisp_attention as crisp
from crisp_attention import CheckpointError, RandomK, SparseCheckpointLoadedDense, TopK, Window
from crisp_attention.cli import main as cli
from crisp_attention.models.sparse_model import set_sparsity
from tests.models.adapted import lora, quiet, recorded, trained
from tests.models.tiny import BATCH, distilbert, logits, noisy, sparsity_of

pytestmark = quiet
NAMES = {0: "bad", 1: "good", 2: "undecided"}
SPARSE = TopK(0.6)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A dense base model as it lies on disk."""
    folder = tmp_path_factory.mktemp("base")
    noisy(distilbert()).save_pretrained(folder)
    return folder


@pytest.fixture
def base(home):
    """The base model, each time as new, with three classes that its checkpoint does not have."""

    def load() -> DistilBertForSequenceClassification:
        torch.manual_seed(3)
        return AutoModelForSequenceClassification.from_pretrained(
            home,
            id2label=NAMES,
            label2id={name: i for i, name in NAMES.items()},
            ignore_mismatched_sizes=True,
        )

    return load


@pytest.fixture
def adapter(base, tmp_path):
    """A LoRA that was trained for a few steps on a sparse model, and its folder."""
    model = trained(lora(crisp.sparsify(base(), SPARSE, layers=["1-3"])))
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def silent(load):
    """The result of a call that gives no notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseCheckpointLoadedDense)
        return load()


def edit(folder, old: str, new: str) -> None:
    file = folder / "adapter_config.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_the_setting_lies_in_the_adapters_configuration(adapter) -> None:
    settings = recorded(adapter[1])
    assert {"version": 1, "phase": "always"}.items() <= settings.items()
    assert settings["layers"] == adapter[0].config.crisp_attention["layers"]
    assert len(settings["layers"]) == 3
    assert sorted(path.name for path in adapter[1].iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_load_brings_back_the_base_model_the_setting_and_the_adapter(adapter, base) -> None:
    model, folder = adapter
    loaded = silent(lambda: crisp.load(folder))
    assert type(loaded) is PeftModelForSequenceClassification
    assert type(loaded.get_base_model()) is DistilBertForSequenceClassification
    assert sparsity_of(loaded) == sparsity_of(model)
    assert loaded.config.id2label == NAMES
    assert torch.equal(logits(loaded), logits(model))
    assert (logits(loaded) - logits(lora(base()))).abs().max() > 0.01
    assert not any(p.requires_grad for p in loaded.parameters())


def test_load_can_go_on_training_and_takes_what_either_model_takes(adapter) -> None:
    loaded = crisp.load(
        adapter[1], is_trainable=True, adapter_name="more", dtype=torch.float64, backend="reference"
    )
    assert loaded.dtype == torch.float64
    assert list(loaded.peft_config) == ["more"]
    assert {row.kernel for row in crisp.explain(loaded).rows} == {None, "reference"}
    before = logits(loaded)
    assert not torch.allclose(logits(trained(loaded)), before)


WAYS = {
    "PeftModel": lambda folder, base: PeftModel.from_pretrained(base(), folder),
    "given its configuration": lambda folder, base: PeftModel.from_pretrained(
        base(), folder, config=PeftConfig.from_pretrained(folder)
    ),
    "AutoPeftModel": lambda folder, base: AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    ),
    "AutoModel": lambda folder, base: AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    ),
    "load_adapter": lambda folder, base: with_adapter(base(), str(folder)),
    "a second adapter": lambda folder, base: with_adapter(lora(base()), folder, "default2"),
}


def with_adapter(model, folder, *name):
    model.load_adapter(folder, *name)
    if name:
        model.set_adapter(*name)
    return model


@pytest.mark.parametrize("load", WAYS.values(), ids=WAYS.keys())
def test_every_plain_way_of_loading_says_that_the_model_is_dense(adapter, base, load) -> None:
    model, folder = adapter
    with pytest.warns(
        SparseCheckpointLoadedDense, match=r"trained with sparse attention.*restore\(model\)"
    ) as seen:
        loaded = load(folder, base)
    notices = [each for each in seen if each.category is SparseCheckpointLoadedDense]
    assert len(notices) == 1
    assert notices[0].filename == __file__
    assert not torch.allclose(logits(loaded), logits(model), atol=1e-3)
    expected = logits(crisp.sparsify(copy.deepcopy(loaded), SPARSE, layers=["1-3"]))
    crisp.restore(loaded)
    assert sparsity_of(loaded) == sparsity_of(model)
    assert torch.equal(logits(loaded), expected)


def test_a_pipeline_says_it_too(bert, tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    lora(crisp.sparsify(model, SPARSE), target_modules=["query"]).save_pretrained(tmp_path)
    with pytest.warns(SparseCheckpointLoadedDense, match=r"topk:sparsity=0\.6.* is dense"):
        pipeline("text-classification", model=str(tmp_path), tokenizer=bert)


def test_a_base_model_with_the_same_setting_needs_no_notice(adapter, base) -> None:
    model, folder = adapter
    loaded = silent(lambda: PeftModel.from_pretrained(crisp.sparsify(base(), SPARSE, layers=["1-3"]), folder))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ({"method": TopK(0.5), "layers": ["1-3"]}, r"topk:sparsity=0\.5 in 3 layers: 1, 2, 3"),
        ({"method": SPARSE}, r"topk:sparsity=0\.6 in 4 layers: 0, 1, 2, 3"),
        ({"method": SPARSE, "layers": ["1-3"], "phase": "train"}, r"topk:sparsity=0\.6 in 3 layers: .*; phase train"),
        ({"layers": {"1-2": SPARSE, "3": Window(3)}}, r"topk:sparsity=0\.6 in 2 layers: 1, 2; window:width=3"),
    ],
)  # fmt: skip
def test_another_setting_than_the_recorded_one_is_named_beside_it(adapter, base, change, now) -> None:
    model, folder = adapter
    trained_with = r"trained with sparse attention \(topk:sparsity=0\.6 in 3 layers: 1, 2, 3\)"
    with pytest.warns(SparseCheckpointLoadedDense, match=rf"{trained_with}, but .* has another \({now}"):
        loaded = PeftModel.from_pretrained(crisp.sparsify(base(), **change), folder)
    crisp.restore(loaded)
    assert torch.equal(logits(loaded), logits(model))


def test_a_model_that_was_switched_away_from_its_setting_is_dense(adapter, base) -> None:
    switched = crisp.sparsify(base(), SPARSE, layers=["1-3"])
    switched.set_attn_implementation("sdpa")
    with pytest.warns(SparseCheckpointLoadedDense, match="is dense"):
        PeftModel.from_pretrained(switched, adapter[1])


def test_a_model_with_other_layers_is_told_which_it_lacks(adapter) -> None:
    with (
        pytest.warns(SparseCheckpointLoadedDense, match=r"model with other layers: .*layer\.2\.attention"),
        pytest.raises(RuntimeError, match="size mismatch"),
    ):
        PeftModel.from_pretrained(distilbert(layers=2), adapter[1])


def test_looking_at_the_configuration_alone_says_it_as_well(adapter) -> None:
    with pytest.warns(SparseCheckpointLoadedDense, match="that it is loaded into is dense"):
        PeftConfig.from_pretrained(adapter[1])


def test_dense_models_and_their_adapters_are_as_without_crisp(base, tmp_path) -> None:
    shared = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_lin"])
    sparse, dense = get_peft_model(crisp.sparsify(base(), SPARSE), shared), get_peft_model(base(), shared)
    for name, model in {"sparse": sparse, "dense": dense}.items():
        model.save_pretrained(tmp_path / name)
    assert recorded(tmp_path / "sparse") is not None
    assert recorded(tmp_path / "dense") is None
    silent(lambda: PeftModel.from_pretrained(base(), tmp_path / "dense"))
    with pytest.warns(SparseCheckpointLoadedDense, match="holds no Crisp settings: the model is dense"):
        loaded = crisp.load(tmp_path / "dense", num_labels=3, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match="no Crisp settings to restore"):
        crisp.restore(loaded)


def test_an_adapter_says_what_its_model_is_when_it_is_saved(adapter, tmp_path) -> None:
    model, _ = adapter
    set_sparsity(model, 0.25)  # as a schedule does
    model.save_pretrained(tmp_path / "later")
    assert set(sparsity_of(crisp.load(tmp_path / "later")).values()) == {0.25}
    crisp.sparsify(model, RandomK(0.5), phase="train")
    model.save_pretrained(tmp_path / "again")
    assert recorded(tmp_path / "again")["phase"] == "train"
    assert torch.equal(logits(crisp.load(tmp_path / "again")), logits(model))
    crisp.densify(model).save_pretrained(tmp_path / "dense")
    assert recorded(tmp_path / "dense") is None


def test_what_was_loaded_dense_keeps_its_record_until_it_is_made_dense_on_purpose(
    adapter, base, tmp_path
) -> None:
    with pytest.warns(SparseCheckpointLoadedDense):
        loaded = PeftModel.from_pretrained(base(), adapter[1])
    loaded.save_pretrained(tmp_path / "kept")
    assert recorded(tmp_path / "kept") == recorded(adapter[1])
    crisp.densify(crisp.restore(loaded)).save_pretrained(tmp_path / "dense")
    assert recorded(tmp_path / "dense") is None


def test_each_adapter_of_a_model_is_saved_with_the_setting(adapter, tmp_path) -> None:
    model, _ = adapter
    model.add_adapter("other", LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["k_lin"]))
    model.save_pretrained(tmp_path / "both")
    assert recorded(tmp_path / "both") == recorded(tmp_path / "both" / "other")
    assert list(crisp.load(tmp_path / "both", subfolder="other").peft_config) == ["default"]
    crisp.sparsify(model, Window(3))
    model.save_pretrained(tmp_path / "windows", selected_adapters=["other"])
    loaded = crisp.load(tmp_path / "both")
    with pytest.warns(SparseCheckpointLoadedDense, match="window:width=3"):
        loaded.load_adapter(tmp_path / "windows" / "other", "windows")
    loaded.set_adapter("windows")
    crisp.restore(loaded)  # as the adapter in use says
    assert torch.equal(logits(loaded), logits(with_active(model, "other")))


def with_active(model, name):
    model.set_adapter(name)
    return model


def test_the_models_own_adapters_carry_it_as_well(base, tmp_path) -> None:
    model = crisp.sparsify(base(), SPARSE)
    model.add_adapter(LoraConfig(target_modules=["q_lin"], init_lora_weights=False))
    model.eval().save_pretrained(tmp_path)
    assert recorded(tmp_path)["layers"] == model.config.crisp_attention["layers"]
    loaded = crisp.load(tmp_path)
    assert set(sparsity_of(loaded).values()) == {0.6}
    with pytest.warns(SparseCheckpointLoadedDense):
        own = with_adapter(base(), str(tmp_path))
    assert torch.equal(logits(crisp.restore(own)), logits(model))


@pytest.mark.parametrize("leave", ["merge_and_unload", "unload"])
def test_a_model_that_left_its_adapters_keeps_the_setting(adapter, tmp_path, leave) -> None:
    model, _ = adapter
    with_adapters = logits(model)
    with model.disable_adapter():
        without = logits(model)
    left = getattr(model, leave)()
    torch.testing.assert_close(logits(left), with_adapters if leave == "merge_and_unload" else logits(left))
    assert (with_adapters - without).abs().max() > 0.01
    assert set(sparsity_of(left).values()) == {0.6}
    left.save_pretrained(tmp_path / "left")
    loaded = crisp.load(tmp_path / "left")
    assert type(loaded) is DistilBertForSequenceClassification
    assert torch.equal(logits(loaded), logits(left))
    crisp.densify(loaded)


def test_a_base_model_that_is_itself_a_sparse_checkpoint(base, tmp_path) -> None:
    crisp.sparsify(base(), Window(5)).save_pretrained(tmp_path / "base")
    model = lora(crisp.load(tmp_path / "base"))
    silent(lambda: model.save_pretrained(tmp_path / "adapter"))  # PEFT reads the base model's configuration
    assert torch.equal(logits(crisp.load(tmp_path / "adapter")), logits(model))
    crisp.sparsify(model, SPARSE).save_pretrained(tmp_path / "adapter")
    assert set(sparsity_of(crisp.load(tmp_path / "adapter")).values()) == {0.6}


def test_an_adapter_without_settings_is_loaded_with_those_of_its_base_model(base, home, tmp_path) -> None:
    lora(base()).save_pretrained(tmp_path / "adapter")
    crisp.sparsify(base(), SPARSE).save_pretrained(tmp_path / "base")
    edit(tmp_path / "adapter", json.dumps(str(home)), json.dumps(str(tmp_path / "base")))
    assert set(sparsity_of(crisp.load(tmp_path / "adapter")).values()) == {0.6}


def test_measuring_explaining_and_densifying_see_through_the_adapters(adapter, base) -> None:
    model, _ = adapter
    with crisp.measuring(model) as measured:
        logits(model)
    table = measured.table()
    assert set(table.loc[table["method"] == "topk", "layer"]) == {1, 2, 3}
    assert table.loc[table["method"] == "topk", "sparsity"].between(0.4, 0.6).all()
    assert [row.method for row in crisp.explain(model).rows] == ["dense", *["topk:sparsity=0.6"] * 3]
    crisp.densify(model)
    assert not crisp.is_sparse(model)
    assert {row.method for row in crisp.explain(model).rows} == {"dense"}


@pytest.mark.slow
def test_a_trainer_saves_resumes_and_picks_adapters_with_the_setting(base, tmp_path) -> None:
    examples = [{"input_ids": BATCH["input_ids"][0], "labels": i % 2} for i in range(8)]

    def trainer(steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, save_steps=2, eval_steps=2, eval_strategy="steps",
            load_best_model_at_end=True, report_to="none", use_cpu=True, seed=1,
        )  # fmt: skip
        model = lora(crisp.sparsify(base(), SPARSE))
        return Trainer(model=model, args=arguments, train_dataset=examples, eval_dataset=examples[:2])

    first = trainer(4)
    first.train()
    loaded = crisp.load(first.state.best_model_checkpoint)
    assert torch.equal(logits(loaded), logits(first.model.eval()))
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(logits(resumed.model.eval()), logits(first.model))
    assert set(sparsity_of(resumed.model).values()) == {0.6}


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"version": 1', '"version": 9', ValueError, r"auto_mapping\.crisp_attention must be of version 1, found 9"),
        ('"always"', '"never"', ValueError, "is damaged.*'never'"),
        ('"base_model_name_or_path": "', '"base_model_name_or_path": "", "x": "', CheckpointError, "which model"),
        ('"DistilBertForSequenceClassification"', '"MyOwn"', CheckpointError, "names MyOwn .* none of transformers"),
        ('"peft_type"', '"peft', CheckpointError, "cannot load an adapter from"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_an_error_not_a_dense_model(adapter, old, new, error, message) -> None:
    edit(adapter[1], old, new)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's, of a key that it does not know
        with pytest.raises(error, match=message):
            crisp.load(adapter[1])


def test_weights_that_are_damaged_or_pickled_are_not_read(adapter) -> None:
    model, folder = adapter
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        crisp.load(folder)
    weights.unlink()
    model.save_pretrained(folder, safe_serialization=False)
    assert (folder / "adapter_model.bin").is_file()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        crisp.load(folder)


def test_a_command_that_expects_a_whole_model_says_how_to_make_one(adapter, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["crisp", "view", "--model", str(adapter[1]), "--text", "a film"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "is a PEFT adapter, expected a whole model: crisp_attention.load(" in capsys.readouterr().err


def test_peft_without_crisp_loads_it_as_any_other(adapter) -> None:
    saved = PeftConfig.from_json_file(adapter[1] / "adapter_config.json")
    assert (
        saved.keys() <= inspect.signature(LoraConfig).parameters.keys()
    )  # else PEFT says that it is too old
