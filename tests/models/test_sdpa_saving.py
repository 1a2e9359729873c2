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


class Whole(nn.Module):
    """Two decoders and a head, or a model of transformers in place of one."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second or built(), nn.Linear(32, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(ids)) + self.first(ids)[0].mean()


def test_the_whole_is_saved_whichever_of_its_parts_are_sparse(tmp_path) -> None:
    torch.manual_seed(3)
    whole = Whole(built())
    for parts in ((whole.second,), (whole.first, whole.second)):
        for part in parts:
            crisp.sparsify(part, TopK(0.5))
        sparse = whole(IDS)
        crisp.save(whole, tmp_path / "saved")
        twin = crisp.load_into(Whole(built()), tmp_path / "saved")
        assert twin(IDS).equal(sparse)
        assert [crisp.is_sparse(each) for each in (twin.first, twin.second)] == [len(parts) == 2, True]
    crisp.sparsify(whole, TopK(0.7))  # takes the place of what its parts had
    crisp.save(whole, tmp_path / "saved")
    twin = crisp.load_into(Whole(built()), tmp_path / "saved")
    assert len(crisp.explain(twin).rows) == 6
    assert twin(IDS).equal(whole(IDS))
    with pytest.raises(ValueError, match="this GPT is part of a larger sparse model: save that one"):
        crisp.save(whole.first, tmp_path / "part")
    with pytest.raises(
        crisp.CheckpointError, match=r"first is sparse and was saved dense: call crisp\.densify"
    ):
        crisp.load_into(Whole(crisp.sparsify(built(), TopK(0.5))), tmp_path / "saved")
    assert crisp.densify(twin)
    assert nothing_is_left(twin)


def test_a_model_of_transformers_in_one_of_your_own_is_saved_with_it(tmp_path) -> None:
    whole = Whole(crisp.sparsify(distilbert(), Entmax("learned")))
    for name, each in whole.named_parameters():
        if "crisp_learned" in name:
            each.data.add_(0.2)
    crisp.save(whole, tmp_path / "saved")
    twin = crisp.load_into(Whole(distilbert()), tmp_path / "saved")
    assert twin(IDS).equal(whole(IDS))
    assert crisp.is_sparse(twin.first)
    assert not crisp.is_sparse(twin.second)


def test_weights_are_compared_in_both_directions_before_any_is_read(tmp_path) -> None:
    class Tied(GPT):
        def __init__(self, tie: bool) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 32, bias=False)
            if tie:
                self.head.weight = self.tokens.weight

    crisp.save(built(), tmp_path / "whole")
    more = built()
    more.further = nn.Linear(2, 2)
    before = {name: each.clone() for name, each in more.state_dict().items()}
    with pytest.raises(crisp.CheckpointError, match=r"further\.weight was not saved"):
        crisp.load_into(more, tmp_path / "whole")
    assert all(each.equal(before[name]) for name, each in more.state_dict().items())
    for tie in (False, True):
        crisp.save(crisp.sparsify(Tied(tie), TopK(0.5)), tmp_path / str(tie))
        assert crisp.load_into(Tied(tie), tmp_path / str(tie))
    with pytest.raises(crisp.CheckpointError, match="was not saved"):
        crisp.load_into(Tied(False), tmp_path / "True")
    with pytest.raises(
        crisp.CheckpointError, match="are one tensor in this model and were two when it was saved"
    ):
        crisp.load_into(Tied(True), tmp_path / "False")


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the working directory, or holds it: name a folder in it"):
        crisp.save(built(), ".")
    crisp.save(built(), "here")
    assert {each.name for each in tmp_path.iterdir()} == {"here"}


def test_functions_that_load_point_to_each_other(tmp_path) -> None:
    crisp.save(built(), tmp_path / "own")
    with pytest.raises(crisp.CheckpointError, match=r"was saved by crisp\.save: use crisp\.load_into"):
        crisp.load(tmp_path / "own")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got <class .*GPT"):
        crisp.load_into(GPT, tmp_path / "own")
    with pytest.raises(TypeError, match="is a model of transformers: use its save_pretrained"):
        crisp.save(distilbert(), tmp_path / "theirs")
