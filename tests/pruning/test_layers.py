"""What becomes of the layers of a model that is compressed, whatever a model does with them."""

import copy
import logging
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

import crisp_attention as crisp
from crisp_attention import pruning
from crisp_attention.pruning import BlockLinear

FREE = {"least_weights": 0}


def pruned(layer: nn.Linear, seed: int = 0) -> nn.Linear:
    """Three quarters of the blocks of 16 become zero."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(layer.out_features // 16, layer.in_features // 16, generator=generator)
    kept = blocks.argsort(dim=1).argsort(dim=1) < blocks.shape[1] // 4
    with torch.no_grad():
        layer.weight *= kept.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return layer


class Twice(nn.Module):
    """One layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.same = pruned(nn.Linear(64, 64))
        self.left, self.right = pruned(nn.Linear(64, 64), 1), nn.Linear(64, 64)
        self.right.weight = self.left.weight

    def forward(self, states: Tensor) -> Tensor:
        states = self.same(self.one(states).relu())
        return self.right(self.left(states).relu())


def test_what_is_shared_is_shared_by_blocks() -> None:
    model = Twice()
    small = crisp.compress(model, **FREE)
    assert small.one is small.same
    assert small.left.blocks is small.right.blocks
    assert small.left.bias is not small.right.bias
    parameters = sum(each.numel() for each in small.parameters())
    assert parameters == 2 * 64 * 64 // 4 + 3 * 64
    states = torch.randn(5, 64)
    torch.testing.assert_close(small(states), model(states))
    small(states).sum().backward()
    model(states).sum().backward()
    with torch.no_grad():
        for each in (small, model):
            torch.optim.SGD(each.parameters(), 0.1).step()
    for name in ("one", "left", "right"):
        kept = model.get_submodule(name).weight * (small.get_submodule(name).weight != 0)
        torch.testing.assert_close(small.get_submodule(name).weight, kept)


def test_what_learns_and_what_is_hooked_stays_so() -> None:
    model = nn.Sequential(pruned(nn.Linear(64, 64)), nn.GELU(), pruned(nn.Linear(64, 64)))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append("gelu"))
    model[2].register_forward_hook(lambda *_: seen.append("layer"))
    model[2].register_forward_pre_hook(lambda *_: seen.append("before"))
    small = crisp.compress(model, **FREE)
    learns = {name: each.requires_grad for name, each in small.named_parameters()}
    assert learns == {"0.blocks": False, "0.bias": True, "2.blocks": True, "2.bias": False}
    small(torch.randn(2, 64))
    assert seen == ["gelu", "before", "layer"]


def test_heads_that_somebody_pruned_are_compressed_and_what_stays_dense_is_logged(caplog) -> None:
    model = nn.ModuleDict({"body": pruned(nn.Linear(64, 64)), "head": pruned(nn.Linear(64, 64))})
    model["dense"] = nn.Linear(64, 64)
    with caplog.at_level(logging.INFO):
        small = crisp.compress(model, **FREE)
    assert [type(each) for each in small.children()] == [BlockLinear, BlockLinear, nn.Linear]
    assert "these stay dense, which takes less time: dense" in caplog.text


@pytest.mark.parametrize("size", [None, 32])
def test_zeros_of_groups_alone_are_left_out_where_bytes_count(size: int | None) -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    pruning.step(model, [], 0.5, pattern="2:4", block_size=size, saliency="magnitude", skip=["2"])
    with pytest.raises(ValueError, match="no layer that blocks would make faster"):
        crisp.compress(model)
    small = crisp.compress(model, **FREE)
    assert small[0].bytes < 0.6 * (model[0].weight.nbytes + model[0].bias.nbytes)
    assert small[0].weight.equal(model[0].weight)


def parametrized(layer: nn.Linear) -> str:
    nn.utils.parametrizations.weight_norm(layer)
    return "remove_parametrizations"


def masked(layer: nn.Linear) -> str:
    prune.l1_unstructured(layer, "weight", 0.5)
    return "prune.remove"


@pytest.mark.parametrize("computed", [masked, parametrized])
@pytest.mark.parametrize("takes", [crisp.compress, pruning.masks_of])
def test_weights_that_torch_computes_are_named_with_the_remedy(computed, takes) -> None:
    model = nn.Sequential(pruned(nn.Linear(512, 512)), nn.Linear(64, 64))
    remedy = computed(model[1])
    with pytest.raises(ValueError, match=rf"the weight of 1 is computed from others: .*{remedy}"):
        takes(model)


@pytest.mark.parametrize("shape", [(3, 32), (3, 128), (33,), (2, 3, 63), (4, 32), (0, 1)])
@pytest.mark.parametrize("learns", [False, True])
def test_another_number_of_inputs_is_refused(shape: tuple[int, ...], learns: bool) -> None:
    layer = BlockLinear.of(pruned(nn.Linear(64, 64)).weight, None, 16)
    with (
        torch.set_grad_enabled(learns),
        pytest.raises(ValueError, match=r"expected states of 64 inputs, got"),
    ):
        layer(torch.randn(shape))


def test_an_index_beyond_the_inputs_is_refused_also_of_a_file() -> None:
    blocks = torch.ones(1, 1, 16, 16)
    for index in ([[4]], [[-1]]):
        with pytest.raises(ValueError, match=r"index must name the 4 blocks of 16 inputs, got -?\d to"):
            BlockLinear(blocks, torch.tensor(index, dtype=torch.int32), 64, None)
    with pytest.raises(
        ValueError, match=r"expected an index of 1 x 1 and inputs that 16 divides, got 1 x 2 and 60"
    ):
        BlockLinear(blocks, torch.zeros(1, 2, dtype=torch.int32), 60, None)
    layer = BlockLinear(blocks, torch.tensor([[3]], dtype=torch.int32), 64, None)
    damaged = layer.state_dict() | {"index": torch.tensor([[9]], dtype=torch.int32)}
    with pytest.raises(ValueError, match="got 9 to 9"):
        layer.load_state_dict(damaged)


def test_a_model_that_was_loaded_is_one_like_others(tmp_path) -> None:
    config = BertConfig(vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size = 64
    model = BertForSequenceClassification(config).eval()
    pruning.step(model, [], 0.75, pattern=None, block_size=16, saliency="magnitude")
    crisp.compress(model, **FREE).save_pretrained(tmp_path)
    found = crisp.load(tmp_path)
    tokens = torch.arange(8)[None]
    wanted = model(tokens).logits
    for each in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found.half().float()):
        torch.testing.assert_close(each(tokens).logits, wanted, rtol=1e-2, atol=1e-2)
    found.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_what_is_compressed_already_is_said(tmp_path) -> None:
    model = crisp.compress(nn.Sequential(pruned(nn.Linear(64, 64)), nn.ReLU()), **FREE)
    with pytest.raises(
        ValueError, match="some are compressed already: expected the model that it was made from"
    ):
        crisp.compress(model)
    with pytest.raises(
        ValueError, match=r"no layer to prune by blocks of 16; its layers: compressed already"
    ):
        pruning.step(model, [], 0.5, pattern=None, block_size=16, saliency="magnitude")
