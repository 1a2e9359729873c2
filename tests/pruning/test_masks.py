"""Gradients as scores, and masks that hold whatever an optimizer does."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import matrices_of
from crisp_attention.pruning.patterns import Pattern
from crisp_attention.pruning.saliency import Gradients
from crisp_attention.pruning.selection import select

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def bert(**sizes: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=32, num_labels=4, **SIZES | sizes)).eval()


def test_what_of_a_model_is_pruned_and_why_the_rest_is_not() -> None:
    found = matrices_of(bert(), skip=["*.query"])
    assert [each.name.split(".", 4)[-1] for each in found.matrices] == [
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert found.skipped["bert.encoder.layer.0.attention.self.query"] == "as asked for"
    assert found.skipped["bert.pooler.dense"] == found.skipped["classifier"] == "a head"
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    matrices = matrices_of(gpt2).matrices
    assert [each.shape for each in matrices] == [(48, 16), (16, 16), (64, 16), (16, 64)]
    with pytest.raises(ValueError, match=r"skip: 'decoder\.\*' matches none of the 8 layers"):
        matrices_of(bert(), skip=["decoder.*"])


@pytest.mark.parametrize("family", ["bart", "t5", "xlnet"])
def test_what_is_outside_of_the_base_model_is_a_head(family: str) -> None:
    sizes = {
        "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        "t5": {"d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "d_ff": 32},
        "xlnet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32},
    }
    config = AutoConfig.for_model(family, vocab_size=32, num_labels=4, **sizes[family])
    model = AutoModelForSequenceClassification.from_config(config)
    found = matrices_of(model)
    heads = {name for name, reason in found.skipped.items() if reason == "a head"}
    inside = {name for name, _ in model.base_model.named_modules(prefix=model.base_model_prefix)}
    assert heads
    assert not heads & inside
    # projections that XLNet holds as parameters of its own are at least named
    raw = {name.rsplit(".", 1)[-1] for name, reason in found.skipped.items() if "no weight of" in reason}
    assert raw >= ({"q", "k", "v", "o", "r"} if family == "xlnet" else set())
    assert {each.name for each in found.matrices} <= inside


def test_a_shared_weight_is_pruned_once_and_an_embedding_never() -> None:
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(8, 16),
            "out": nn.Linear(16, 8),
            "a": nn.Linear(16, 16),
            "b": nn.Linear(16, 16),
        }
    )
    model["out"].weight, model["b"].weight = model["words"].weight, model["a"].weight
    found = matrices_of(model)
    assert [each.name for each in found.matrices] == ["a"]
    assert found.skipped == {
        "out": "its weight is that of an embedding",
        "b": "its weight is that of an earlier layer",
    }


def test_a_matrix_has_the_channels_of_one_position_side_by_side() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 6, 2))
    (matrix,) = matrices_of(model).matrices
    assert (matrix.name, matrix.shape, matrix.channels) == ("1", (6, 16), 4)
    assert matrix.rows(matrix.weight)[2, 4:8].equal(matrix.weight[2, :, 0, 1])
    assert matrix.back(matrix.rows(matrix.weight)).equal(matrix.weight)


def test_gradients_are_averaged_over_losses_each_by_its_size() -> None:
    layer = nn.Linear(3, 2, bias=False)
    one, two = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    matrices = matrices_of(nn.Sequential(layer)).matrices
    gradients = Gradients(matrices)
    for each in (one, two):
        gradients.add(8 * layer(each).square().sum(), scale=8.0)
    assert layer.weight.grad is None
    grads = [torch.autograd.grad(layer(each).square().sum(), layer.weight)[0] for each in (one, two)]
    weight, mean = layer.weight.detach(), (grads[0] + grads[1]) / 2
    torch.testing.assert_close(
        gradients.scores("taylor")["0"], weight.abs() * (grads[0].abs() + grads[1].abs()) / 2
    )
    torch.testing.assert_close(gradients.scores("signed")["0"], -weight * mean)
    assert gradients.scores("magnitude")["0"].equal(weight.abs())
    with pytest.raises(ValueError, match="a gradient of 0 is not finite"):
        gradients.add(torch.inf * layer(one).sum())


def test_signed_scores_say_what_pruning_adds_to_the_loss() -> None:
    layer = nn.Linear(4, 1, bias=False).double()
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = Gradients(matrices_of(nn.Sequential(layer)).matrices)
    gradients.add(loss := layer(inputs).exp().mean())
    small = copy.deepcopy(layer)
    small.weight.data[0, 2] *= 1 - 1e-6
    added = (small(inputs).exp().mean() - loss) / 1e-6
    torch.testing.assert_close(
        gradients.scores("signed")["0"][0, 2].double(), added.detach(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1),
    ],
    ids=["SGD", "AdamW"],
)
def test_masks_hold_against_momentum_decay_and_accumulation(optimizer) -> None:
    model = bert()
    matrices = matrices_of(model).matrices
    steps = optimizer(model.parameters())
    tokens, labels = torch.arange(24).reshape(2, 12), torch.tensor([1, 3])

    def train(count: int) -> None:
        for _ in range(count):
            for _ in range(2):
                model(tokens, labels=labels).loss.backward()
            steps.step()
            steps.zero_grad()

    train(3)  # so that there is momentum
    scores = {each.name: each.rows(each.weight.detach()).abs() for each in matrices}
    masks = Masks(matrices, select(matrices, scores, Pattern.parse("2:4", 8), 0.7))
    assert masks.sparsity == pytest.approx(0.7, abs=0.05)
    before = [each.weight.detach().clone() for each in matrices]
    with masks.held():
        train(3)
        assert all((each.rows(each.weight)[~masks.kept[each.name]] == 0).all() for each in matrices)
    assert Masks.of(matrices).sparsity == masks.sparsity
    assert not any(each.weight.equal(old) for each, old in zip(matrices, before, strict=True))
    train(1)
    assert Masks.of(matrices).sparsity < masks.sparsity  # they are held inside the block alone


def test_other_optimizers_are_left_alone() -> None:
    model, other = bert(), nn.Linear(2, 2)
    matrices = matrices_of(model).matrices
    masks = Masks(matrices, {each.name: torch.zeros(each.shape, dtype=torch.bool) for each in matrices})
    with masks.held():
        matrices[0].weight.data.fill_(1.0)
        other(torch.ones(2)).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
        assert (matrices[0].weight == 1).all()
    assert (matrices[0].weight == 0).all()
