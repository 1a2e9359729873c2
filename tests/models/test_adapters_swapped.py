"""Weights loaded into an adapter that a model has already bring their setting, or say that it is another."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter

import crisp_attention as crisp
from crisp_attention import Entmax, SparseCheckpointLoadedDense, TopK, Window
from tests.models.adapted import quiet, recorded
from tests.models.tiny import llama, logits, sparsity_of

pytestmark = quiet
SPARSE = TopK(0.8)


def adapted(seed: int, method=None, layers=None):
    """A small Llama, sparse or dense, with a LoRA of its own."""
    model = llama() if method is None else crisp.sparsify(llama(), method, layers=layers)
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(model, config).eval()


@pytest.fixture
def saved(tmp_path):
    """A sparse model with an adapter, and where the adapter was saved."""
    model = adapted(1, SPARSE)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


WAYS = {
    "load_adapter": lambda model, folder: model.load_adapter(folder, "default"),
    "load_adapter, named": lambda model, folder: model.load_adapter(adapter_name="default", model_id=folder),
    "hotswap_adapter": lambda model, folder: hotswap_adapter(model, str(folder), "default", torch_device="cpu"),
}  # fmt: skip
ways = pytest.mark.parametrize("swap", WAYS.values(), ids=WAYS.keys())


@ways
@pytest.mark.parametrize(
    ("method", "said"), [(None, "is dense"), (TopK(0.2), r"another \(topk:sparsity=0\.2 in 2 layers: 0, 1\)")]
)
def test_another_setting_is_named_and_restore_brings_the_adapters(saved, swap, method, said) -> None:
    expected, folder = saved
    model = adapted(2, method)
    with pytest.warns(
        SparseCheckpointLoadedDense, match=rf"trained with .*topk:sparsity=0\.8.* {said}"
    ) as seen:
        swap(model, folder)
    assert [each.filename for each in seen if each.category is SparseCheckpointLoadedDense] == [__file__]
    assert not torch.allclose(logits(model), logits(expected), atol=1e-2)
    crisp.restore(model)
    assert set(sparsity_of(model).values()) == {0.8}
    assert torch.equal(logits(model), logits(expected))


@ways
def test_a_model_with_the_same_setting_needs_no_notice(saved, swap) -> None:
    expected, folder = saved
    model = adapted(2, SPARSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseCheckpointLoadedDense)
        swap(model, folder)
    assert torch.equal(logits(model), logits(expected))


@ways
def test_weights_that_were_trained_dense_take_the_record_away(saved, swap, tmp_path) -> None:
    adapted(3).save_pretrained(tmp_path / "dense")
    model = adapted(2)
    with pytest.warns(SparseCheckpointLoadedDense):
        swap(model, saved[1])
    swap(model, tmp_path / "dense")
    with pytest.raises(ValueError, match="no Crisp settings to restore"):
        crisp.restore(model)
    model.save_pretrained(tmp_path / "again")
    assert recorded(tmp_path / "again") is None


def test_what_a_method_learned_comes_along(tmp_path) -> None:
    trained = crisp.sparsify(adapted(1), Entmax("learned"), layers=["1"])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "alpha" in name:
                parameter.add_(0.02)
    trained.save_pretrained(tmp_path / "adapter")
    same = crisp.sparsify(adapted(2), Entmax("learned"), layers=["1"])
    same.load_adapter(tmp_path / "adapter", "default")
    other = adapted(2, Window(3))
    with pytest.warns(SparseCheckpointLoadedDense, match=r"another \(window:width=3"):
        other.load_adapter(tmp_path / "adapter", "default")
    for model in (same, crisp.restore(other)):
        assert torch.equal(logits(model), logits(trained))


def test_weights_without_a_configuration_are_loaded_as_ever(saved) -> None:
    expected, folder = saved
    (folder / "adapter_config.json").unlink()
    model = adapted(2, SPARSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseCheckpointLoadedDense)
        model.load_adapter(folder, "default")
    assert torch.equal(logits(model), logits(expected))


def test_the_way_of_transformers_without_a_wrapper(saved) -> None:
    expected, folder = saved
    model = llama()
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "mine")
    with pytest.warns(SparseCheckpointLoadedDense, match=r"topk:sparsity=0\.8 .* is dense"):
        model.load_adapter(str(folder), "mine", hotswap=True)
    assert torch.equal(logits(crisp.restore(model)), logits(expected))
