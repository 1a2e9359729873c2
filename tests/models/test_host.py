"""The protocol of hosts, proved by a small one: a module written by hand, without transformers and without a config."""

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, TopK
from crisp_attention.methods.part import Shape
from crisp_attention.models import host as hosts
from crisp_attention.models.host import CRISP, AttentionLayer, Host
from crisp_attention.models.settings import attend, left_alone

LENGTH = 12


class Attention(nn.Module):
    """What a user may have written: two heads over a row of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.qkv(tokens).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(-2, -3)
        return self.out(self.attend(*states).transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return tokens


class Toy(Host):
    """Switches a module over by an attribute that hides its method, and keeps the record on the model."""

    name: ClassVar[str] = "toy"

    def roots(self, model: nn.Module) -> list[nn.Module]:
        return [module for module in model.modules() if isinstance(module, Model)]

    def layers(self, root: nn.Module) -> list[AttentionLayer]:
        found = [(name, module) for name, module in root.named_modules() if isinstance(module, Attention)]
        return [AttentionLayer(i, name, module, cross=False) for i, (name, module) in enumerate(found)]

    def shape(self, module: nn.Module) -> Shape:
        return Shape(heads=2, groups=2, width=8)

    def running(self, module: nn.Module) -> str:
        return CRISP if "attend" in vars(module) else "sdpa"

    def own(self, root: nn.Module, module: nn.Module, taken: Any) -> str:
        return "sdpa"

    def switch(self, root: nn.Module) -> None:
        for layer in self.layers(root):
            layer.module.attend = Switched(layer.module)

    def give_back(self, root: nn.Module, taken: Any) -> None:
        for layer in self.layers(root):
            vars(layer.module).pop("attend", None)

    def write(self, root: nn.Module, record: dict[str, Any]) -> None:
        root.record = record

    def read(self, model: nn.Module, root: nn.Module) -> Any:
        return None

    def erase(self, root: nn.Module) -> None:
        vars(root).pop("record", None)


class Switched:
    """An attention function that knows its module."""

    def __init__(self, module: Attention) -> None:
        self.module = module

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if left_alone(self.module, key.shape[2]):
            return Attention.attend(self.module, query, key, value)
        return attend(self.module, query, key, value)[0]


@pytest.fixture(autouse=True)
def toy(monkeypatch) -> None:
    monkeypatch.setattr(hosts, "_REGISTERED", dict(hosts._REGISTERED))
    hosts.register(Toy())


def built() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1)))


def by_hand(model: Model, keep: int) -> Tensor:
    """Top-k attention written again."""
    tokens = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in model.layers:
            query, key, value = layer.qkv(tokens).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(-2, -3)
            scores = query @ key.transpose(-1, -2) / 8**0.5
            least = scores.topk(keep, dim=-1).values[..., -1:]
            weights = scores.masked_fill(scores < least, -torch.inf).softmax(dim=-1)
            tokens = tokens + layer.out((weights @ value).transpose(1, 2).flatten(2))
    return tokens


def test_it_is_made_sparse_and_dense_again() -> None:
    model, dense = built(), run(built())
    crisp.sparsify(model, TopK(0.75))
    torch.testing.assert_close(run(model), by_hand(built(), keep=3))
    crisp.set_sparsity(model, 0.5)
    torch.testing.assert_close(run(model), by_hand(built(), keep=6))
    assert [each["rule"]["sparsity"] for each in model.record["layers"].values()] == [0.5] * 3
    crisp.densify(model)
    assert run(model).equal(dense)
    assert not [
        name for module in model.modules() for name in vars(module) if "crisp" in name or name == "record"
    ]


def test_layers_heads_and_learned_parameters() -> None:
    model = crisp.sparsify(nn.Sequential(built()), layers={"0": {"0": TopK(0.5)}, "2": Entmax("learned")})
    assert [name for name, _ in model.named_parameters() if "crisp" in name] == [
        "0.layers.2.crisp_learned.rule.alpha"
    ]
    model(torch.randn(1, LENGTH, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    twin = copy.deepcopy(model)
    assert run(twin).equal(run(model))
    crisp.densify(twin)
    assert crisp.is_sparse(model)
    assert not crisp.is_sparse(twin)


def test_it_is_measured_and_explained_dense_and_sparse() -> None:
    model, dense = built(), run(built())
    for sparsity in (0.0, 0.5):
        with crisp.measuring(model) as measured:
            run(model)
        assert measured.summary()["sparsity"] == pytest.approx(sparsity)
        kernels = {row.kernel for row in crisp.explain(model, length=LENGTH).rows}
        assert kernels == ({None} if sparsity == 0 else {"cpu"})
        crisp.sparsify(model, TopK(0.5))
    crisp.sparsify(model, layers={"0": BlockTopK(0.5, block_size=4), "1": Dense()})
    lines = str(crisp.explain(model, length=LENGTH)).splitlines()
    assert lines[0].startswith("Model in evaluation: 1 x 12 tokens, float32, cpu")
    assert [line for line in lines if "it runs" in line] == [
        "  dense -> the model's own attention: it drops nothing; it runs sdpa",
        "  dense -> the model's own attention: it is dense; it runs sdpa",
    ]
    assert run(crisp.densify(model)).equal(dense)


def test_it_is_profiled() -> None:
    model = built()
    found = crisp.profile(model, [{"tokens": torch.randn(2, LENGTH, 16)}], block_size=4)
    assert found.kept(TopK(0.5))[0] == pytest.approx(0.5)
    budgets = found.recommend(sparsity=0.5)
    crisp.sparsify(model, budgets)
    assert list(budgets.methods) == ["layers.0", "layers.1", "layers.2"]


def test_what_it_does_not_do_is_an_error() -> None:
    with pytest.raises(
        TypeError, match=r"expected a model of toy or diffusers or transformers, .* Linear holds none"
    ):
        crisp.sparsify(nn.Linear(2, 2), TopK(0.5))
    with pytest.raises(ValueError, match="holds no Crisp settings to restore"):
        crisp.restore(built())
    model = crisp.sparsify(built(), TopK(0.5))
    vars(model.layers[1]).pop("attend")
    with pytest.raises(ValueError, match=r"attention implementation of layers\.1 was set to 'sdpa' after"):
        crisp.set_sparsity(model, 0.8)
