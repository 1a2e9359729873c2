"""What a method learns is trained, saved, switched and merged with an adapter."""

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import crisp_attention as crisp
from crisp_attention import SparseCheckpointLoadedDense, TopK
from crisp_attention.models.borrowing import borrowed
from tests.models.adapted import lora, quiet, recorded, trainable, trained
from tests.models.test_learned import LEARNED, same, values
from tests.models.tiny import BATCH, distilbert, llama, logits, noisy

pytestmark = quiet


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    noisy(distilbert()).save_pretrained(folder)
    return folder


@pytest.fixture
def base(home):
    return lambda: AutoModelForSequenceClassification.from_pretrained(home)


def sparse_first(base):
    return lora(crisp.sparsify(base(), LEARNED), modules_to_save=["crisp_learned"])


def adapter_first(base):
    return crisp.sparsify(lora(base()), LEARNED)


def frozen_first(base):
    return crisp.sparsify(lora(crisp.sparsify(base(), LEARNED)), LEARNED)


@pytest.mark.parametrize("build", [sparse_first, adapter_first, frozen_first])
def test_in_either_order_it_is_trained_beside_lora_and_comes_back_with_the_adapter(
    base, build, tmp_path
) -> None:
    model = build(base)
    before = values(model)
    assert len(trainable(model, "crisp_learned")) == 4
    trained(model)
    moved = {name for name, value in values(model).items() if not value.equal(before[name])}
    assert moved == set(trainable(model, "crisp_learned"))
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert same(values(loaded), values(model))
    assert torch.equal(logits(loaded), logits(model))
    assert trainable(loaded, "crisp_learned") == []
    again = crisp.load(tmp_path, is_trainable=True)
    assert trainable(again, "crisp_learned") == trainable(model, "crisp_learned")


def test_without_being_asked_peft_freezes_it_with_the_base_model_and_the_adapter_still_brings_it_back(
    base, tmp_path
) -> None:
    sparse = crisp.sparsify(base(), LEARNED)
    with torch.no_grad():
        for parameter in sparse.parameters():
            if parameter.shape == (2,) and parameter.abs().max() == 0:
                parameter.copy_(torch.tensor([0.01, -0.02]))
    model = lora(sparse)
    assert trainable(model, "crisp_learned") == []
    before = values(trained(model))
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert same(values(loaded), before)
    assert torch.equal(logits(loaded), logits(model))


PLAIN = {
    "PeftModel": lambda folder, base: PeftModel.from_pretrained(base(), folder),
    "AutoPeftModel": lambda folder, base: AutoPeftModelForSequenceClassification.from_pretrained(folder),
    "AutoModel": lambda folder, base: AutoModelForSequenceClassification.from_pretrained(folder),
}


@pytest.mark.parametrize("load", PLAIN.values(), ids=PLAIN.keys())
def test_a_plain_load_can_be_restored(base, load, tmp_path) -> None:
    model = trained(sparse_first(base))
    model.save_pretrained(tmp_path)
    with pytest.warns(SparseCheckpointLoadedDense, match="entmax:alpha=learned"):
        loaded = load(tmp_path, base)
    found, expected = (own(values(each)) for each in (crisp.restore(loaded), model))
    assert len(found) == 4
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
    assert type(loaded) is not type(model) or torch.equal(logits(loaded), logits(model))


def own(values: dict[str, Tensor]) -> list[Tensor]:
    """Those of the adapter, not of the base model."""
    return [value for name, value in values.items() if ".modules_to_save.default." in name]


def test_a_sparse_base_model_takes_it_from_the_adapters_weights(base, tmp_path) -> None:
    model = trained(sparse_first(base))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(crisp.sparsify(base(), LEARNED), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_every_adapter_has_its_own_and_without_adapters_it_is_the_base_models(base, tmp_path) -> None:
    model = trained(sparse_first(base))
    first = logits(model)
    model.add_adapter(
        "second", LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], modules_to_save=["crisp_learned"])
    )
    model.set_adapter("second")
    second = logits(trained(model))
    assert not torch.allclose(first, second, atol=1e-3)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(crisp.sparsify(base(), LEARNED)))
    model.save_pretrained(tmp_path)
    assert recorded(tmp_path)["learned"] != recorded(tmp_path / "second")["learned"]
    with pytest.warns(SparseCheckpointLoadedDense):
        both = PeftModel.from_pretrained(base(), tmp_path)
    with pytest.warns(SparseCheckpointLoadedDense):
        both.load_adapter(tmp_path / "second", "second")
    crisp.restore(both)
    assert torch.equal(logits(both), first)
    both.set_adapter("second")
    assert torch.equal(logits(both), second)


def test_it_is_merged_with_the_adapter(base, tmp_path) -> None:
    model = trained(sparse_first(base))
    adapted = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), adapted)
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(crisp.load(tmp_path)), logits(merged))


def test_another_method_takes_it_away_and_dense_leaves_nothing_behind(base, tmp_path) -> None:
    model = trained(sparse_first(base))
    with borrowed(model.get_base_model(), method=TopK(0.5)):
        assert values(model) == {}
    with borrowed(model.get_base_model(), method=LEARNED):
        pass
    assert len(trainable(model, "crisp_learned")) == 4
    crisp.sparsify(model, TopK(0.5))
    assert values(model) == {}
    model.save_pretrained(tmp_path)
    assert recorded(tmp_path)["learned"] == {}
    assert values(crisp.load(tmp_path)) == {}
    assert not [name for name, _ in crisp.densify(model).named_modules() if "crisp" in name]


def test_a_learned_prompt_has_it_beside_itself(tmp_path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = type(llama()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    crisp.sparsify(model, LEARNED)
    before = values(model)
    trained(model, BATCH | {"labels": BATCH["input_ids"]})
    assert not any(values(model)[name].equal(before[name]) for name in trainable(model, "crisp_learned"))
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(crisp.load(tmp_path / "adapter")), logits(model))


def test_a_resumed_training_goes_on_with_it(base, tmp_path) -> None:
    def trainer(steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, save_steps=2, learning_rate=1e-3, report_to="none", use_cpu=True,
        )  # fmt: skip
        examples = [{"input_ids": BATCH["input_ids"][0], "labels": i % 2} for i in range(8)]
        return Trainer(model=sparse_first(base), args=arguments, train_dataset=examples)

    whole, resumed = trainer(4), trainer(4)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in values(whole.model).items():
        torch.testing.assert_close(values(resumed.model)[name], value)


def test_names_of_before_are_read(base, tmp_path) -> None:
    model = trained(sparse_first(base))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    before = {name.replace("crisp_learned.rule.", "crisp_learned."): each for name, each in weights.items()}
    assert before.keys() != weights.keys()
    save_file(before, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"rule.alpha": [', '"alpha": ['))
    assert same(values(crisp.load(tmp_path)), values(model))


def test_values_that_the_adapter_lacks_are_an_error(base, tmp_path) -> None:
    trained(sparse_first(base)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(
        file.read_text().replace(
            'layer.2.attention": {\n          "rule.alpha"', 'layer.2.attention": {\n          "rule.beta"'
        )
    )
    with pytest.raises(
        ValueError,
        match=r"adapter 'default' does not hold what .*layer\.2\.attention learned: expected rule.alpha",
    ):
        crisp.load(tmp_path)
