"""`crisp.save` and `crisp.load_into`: models that have no way of their own to be saved."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import crisp_attention as crisp
from crisp_attention import Entmax, TopK
from tests.models.by_hand import GPT, IDS, LENGTH, WIDTH, Hidden, built, nothing_is_left
from tests.models.tiny import distilbert


def test_it_is_saved_and_loaded_with_what_it_learned(tmp_path) -> None:
    model = crisp.sparsify(built(), Entmax("learned"), layers=[0, 1])
    for name, each in model.named_parameters():
        if "crisp_learned" in name:
            each.data.add_(0.1)
    crisp.save(model, tmp_path / "saved")
    assert {each.name for each in (tmp_path / "saved").iterdir()} == {"model.safetensors", "crisp.json"}
    torch.manual_seed(7)
    twin = crisp.load_into(GPT().eval(), tmp_path / "saved")
    assert twin(IDS).equal(model(IDS))
    assert crisp.is_sparse(twin)
    other = crisp.load_into(crisp.sparsify(GPT().eval(), TopK(0.5)), tmp_path / "saved")
    assert other(IDS).equal(model(IDS))
    crisp.densify(model)
    crisp.save(model, tmp_path / "saved")  # in place of the sparse one
    assert crisp.load_into(GPT().eval(), tmp_path / "saved")(IDS).equal(built()(IDS))


def test_what_only_a_pass_found_is_found_again(tmp_path) -> None:
    torch.manual_seed(6)
    model = nn.Sequential(Hidden(functional.scaled_dot_product_attention)).eval()
    states = torch.randn(2, LENGTH, WIDTH)
    crisp.sparsify(model, TopK(0.5), inputs=states)
    crisp.save(model, tmp_path)
    twin = crisp.load_into(nn.Sequential(Hidden(functional.scaled_dot_product_attention)).eval(), tmp_path)
    assert twin(states).equal(model(states))


def test_what_does_not_fit_changes_nothing(tmp_path) -> None:
    crisp.save(crisp.sparsify(built(), TopK(0.5)), tmp_path / "saved")
    small = built()
    small.head = nn.Linear(WIDTH, 8)
    before = {name: each.clone() for name, each in small.state_dict().items()}
    with pytest.raises(
        crisp.CheckpointError, match=r"head\.bias was saved with the shape \(32,\), the model's is \(8,"
    ):
        crisp.load_into(small, tmp_path / "saved")
    assert nothing_is_left(small)
    assert all(each.equal(before[name]) for name, each in small.state_dict().items())
    (tmp_path / "saved" / "crisp.json").write_text("{")
    with pytest.raises(crisp.CheckpointError, match=r"crisp\.json is damaged"):
        crisp.load_into(built(), tmp_path / "saved")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files that do not belong to a saved model \(notes\.txt\)"):
        crisp.save(built(), tmp_path / "mine")
    with pytest.raises(
        TypeError,
        match="DistilBertForSequenceClassification is a model of transformers: use its save_pretrained",
    ):
        crisp.save(distilbert(), tmp_path / "new")
