"""A configuration that transformers would not save with Crisp's attention: said before anything changes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DistilBertConfig

import crisp_attention as crisp
from crisp_attention import TopK
from crisp_attention.models.notice import restoring
from tests.models.tiny import BATCH, distilbert, logits


def returning_attentions(implementation="eager"):
    model = distilbert(layers=2)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_output_attentions_in_the_config_is_refused_with_the_way_out(implementation, tmp_path):
    model = returning_attentions(implementation)
    own = model(**BATCH)
    with pytest.raises(
        ValueError, match=r"output_attentions=True.*set model\.config\.output_attentions = False"
    ):
        crisp.sparsify(model, TopK(0.5))
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**BATCH).logits, own.logits)

    model.config.output_attentions = False
    crisp.sparsify(model, TopK(0.5))
    attentions = model(**BATCH, output_attentions=True).attentions
    assert [(each[0] > 0).sum(dim=-1).unique().tolist() for each in attentions] == [[4], [4]]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(crisp.load(tmp_path)), logits(model))


def test_a_dense_model_with_it_is_measured_and_left_as_it_was():
    model = returning_attentions()
    with crisp.measuring(model) as measured:
        attentions = model(**BATCH).attentions
    assert (measured.table()["sparsity"] == 0).all()
    for ours, own in zip(attentions, model(**BATCH).attentions, strict=True):
        torch.testing.assert_close(ours[0], own[0])
    assert model.config.output_attentions
    assert model.config._attn_implementation == "eager"


def test_loading_a_sparse_checkpoint_with_it_is_refused_too(tmp_path):
    crisp.sparsify(distilbert(layers=2), TopK(0.5)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"output_attentions=True.*output_attentions=False"):
        crisp.load(tmp_path, output_attentions=True)
    with restoring():
        model = type(distilbert()).from_pretrained(tmp_path, output_attentions=True)
    with pytest.raises(ValueError, match=r"output_attentions=True"):
        crisp.restore(model)


def test_any_check_that_only_crisps_attention_fails_is_found(monkeypatch):
    def no_crisp(config):
        if config._attn_implementation == "crisp":
            raise StrictDataclassError("something is not supported")

    monkeypatch.setattr(DistilBertConfig, "validate", no_crisp)
    model = distilbert(layers=2)
    with pytest.raises(ValueError, match="could not be saved once it is sparse: something is not supported"):
        crisp.sparsify(model, TopK(0.5))

    def nothing(config):
        raise StrictDataclassError("wrong as it is")

    monkeypatch.setattr(DistilBertConfig, "validate", nothing)
    crisp.sparsify(model, TopK(0.5))
