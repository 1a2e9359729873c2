"""`crisp.fit`: a layout with fitted parameters is fitted on what its layers see, saved, loaded and refitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import Entmax, Method, TopK
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.part import Fitter, Gold, Parameter, Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.models.parameters import parameters_of
from tests.models.adapted import quiet
from tests.models.tiny import BATCH, distilbert, layers_of, llama, logits


@dataclass(frozen=True)
class NearMean(Layout):
    """A query looks at the keys whose projection on the head's mean key is at least the quantile."""

    share: float = 0.5
    size: int = 1

    name: ClassVar[str] = "near_mean"

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        return {
            "mean": Parameter(torch.zeros(shape.heads, self.size, shape.width), trained=False),
            "seed": Parameter(torch.zeros(1), trained=False, per_head=False),
        }

    def fitter(self, shape: Shape, gold: Gold, seed: int = 0) -> Fitter:
        return Means(self, shape, seed)

    def visible(self, rows: Rows) -> Tensor:
        mean = self.parameter(rows, "mean")[:, 0]
        shared = rows.query.shape[1] // rows.key.shape[1]
        along = torch.einsum("bhsd,hd->bhs", rows.key.repeat_interleave(shared, dim=1), mean)
        near = along >= along.quantile(self.share, dim=-1, keepdim=True)
        own = torch.eye(rows.query.shape[2], rows.key.shape[2], dtype=torch.bool)
        return rows.valid & (near[:, :, None] | own)


class Means:
    order: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, layout: NearMean, shape: Shape, seed: int) -> None:
        self.layout, self.shape, self.seed = layout, shape, seed
        self.total, self.count = torch.zeros(shape.heads, shape.width), 0

    def see(self, rows: Rows) -> None:
        self.order.append((self.seed, self.count))
        key = rows.key.repeat_interleave(self.shape.heads // self.shape.groups, dim=1)
        self.total += key.mean(dim=(0, 2))
        self.count += 1

    def values(self) -> dict[str, Tensor]:
        mean = (self.total / self.count)[:, None].repeat(1, self.layout.size, 1)
        return {"mean": mean, "seed": torch.tensor([float(self.seed % 1000)])}


def fitted(model) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "crisp_learned" in name}


def keys_of(model, layer: int) -> Tensor:
    """The keys of a layer of DistilBERT, (B, S, H, D)."""
    seen = {}
    key = model.distilbert.transformer.layer[layer].attention.k_lin
    hook = key.register_forward_hook(lambda *call: seen.update(keys=call[-1]))
    logits(model)
    hook.remove()
    return seen["keys"].unflatten(-1, (2, 8))


def test_every_layer_is_fitted_on_what_it_sees_of_the_model_without_the_layout() -> None:
    model = crisp.sparsify(distilbert(), Method(NearMean(), TopK(0.5)), layers=["1-2"]).train()
    with pytest.raises(
        ValueError, match=r"needs the parameter 'mean'.*call crisp\.fit\(model, batches\) first"
    ):
        logits(model)
    assert {row.why for row in crisp.explain(model).rows if row.layer == 1} == {
        "it will fail: layout.mean, layout.seed is not fitted; call crisp.fit(model, batches) first"
    }
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    Means.order.clear()
    done = crisp.fit(model, [BATCH, BATCH], progress=False)
    assert [count for _, count in Means.order] == [0, 1, 0, 1]  # layer after layer
    assert len({seed for seed, _ in Means.order}) == 2
    alone = crisp.sparsify(distilbert(), TopK(0.5), layers=["1-2"])
    for layer in layers_of(model)[1:3]:
        found = parameters_of(layer.module)["layout.mean"]
        keys = keys_of(alone, layer.index)
        # the second example of all is held out
        torch.testing.assert_close(found[:, 0], (keys[0].mean(dim=0) + keys.mean(dim=(0, 1))) / 2)
        assert not found.requires_grad
    assert model.training
    assert all(
        torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name in weights
    )
    assert fitted(model).keys() - weights.keys() == fitted(model).keys()
    assert logits(model.eval()).isfinite().all()
    assert repr(done).splitlines()[0] == "Fitted the methods of 2 layers on 2 batches"
    assert done.shapes["distilbert.transformer.layer.1.attention"] == {
        "layout.mean": (2, 1, 8),
        "layout.seed": (1,),
    }
    table = done.table()
    assert table["layer"].tolist() == [1, 1, 2, 2]
    assert table["head"].tolist() == [0, 1, 0, 1]
    assert ((table["recall"] > 0) & (table["recall"] <= 1)).all()


def test_methods_of_one_phase_are_fitted_as_those_of_every_phase() -> None:
    method = Method(NearMean(), TopK(0.5))
    found = []
    for phase in ("always", "train", "eval"):
        model = crisp.sparsify(distilbert(), method, phase=phase).train()
        crisp.fit(model, [BATCH, BATCH], progress=False)
        found.append(fitted(model))
    for other in found[1:]:
        assert all(other[name].equal(value) for name, value in found[0].items())


def test_a_wrapper_is_run_and_not_the_model_inside() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = distilbert(), 0

        def forward(self, **batch: Tensor) -> object:
            self.calls += 1
            return self.model(**batch)

    wrapped = Counting()
    crisp.sparsify(wrapped.model, NearMean())
    crisp.fit(wrapped, [BATCH, BATCH], progress=False)
    assert wrapped.calls == 2 * 4  # the batches, once for each layer


def test_heads_with_several_methods_are_fitted_and_not_scored() -> None:
    model = crisp.sparsify(llama(), heads={"0-1": NearMean(), "*": NearMean(0.2)})
    done = crisp.fit(model, [{"input_ids": BATCH["input_ids"]}], progress=False)
    assert len(done.shapes) == 2
    with pytest.raises(ValueError, match="nothing was scored: the heads of every fitted layer have several"):
        done.table()


def test_they_are_saved_and_loaded_and_the_state_dict_brings_them(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), NearMean())
    crisp.fit(model, [BATCH])
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert fitted(loaded).keys() == fitted(model).keys()
    assert logits(loaded).equal(logits(model))
    other = crisp.sparsify(distilbert(), NearMean())
    other.load_state_dict(model.state_dict())
    assert logits(other).equal(logits(model))


def test_a_model_saved_before_it_was_fitted_is_loaded_unfitted(tmp_path) -> None:
    crisp.sparsify(distilbert(), NearMean()).save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert fitted(loaded) == {}
    crisp.fit(loaded, [BATCH])
    assert logits(loaded).isfinite().all()


@quiet
def test_adapters_bring_them_along(tmp_path) -> None:
    distilbert().save_pretrained(tmp_path / "base")
    base = type(distilbert()).from_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], init_lora_weights=False)
    model = crisp.sparsify(get_peft_model(base, config).eval(), NearMean())
    crisp.fit(model, [BATCH])
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert logits(crisp.load(tmp_path / "adapter")).equal(expected)


def test_fitting_again_and_another_method_leave_no_stale_value() -> None:
    model = crisp.sparsify(distilbert(), NearMean())
    crisp.fit(model, [BATCH])
    first = {name: value.clone() for name, value in fitted(model).items()}
    crisp.sparsify(model, NearMean(share=0.2))  # of the same shapes
    assert all(value.equal(first[name]) for name, value in fitted(model).items())
    crisp.fit(model, [{name: rows.flip(0) for name, rows in BATCH.items()}])
    assert not any(value.equal(first[name]) for name, value in fitted(model).items() if name.endswith("mean"))
    crisp.sparsify(model, NearMean(size=2))
    assert [name for name in fitted(model) if name.endswith("mean")] == []
    with pytest.raises(ValueError, match=r"crisp\.fit"):
        logits(model)


def test_heads_and_trained_parameters_of_the_same_layer() -> None:
    model = crisp.sparsify(llama(), heads={"0-1": Method(NearMean(), Entmax("learned")), "*": NearMean(0.2)})
    crisp.fit(model, [{"input_ids": BATCH["input_ids"]}])
    found = parameters_of(layers_of(model)[0].module)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "layout.mean": (4, 1, 8),
        "layout.seed": (1,),
        "rule.alpha": (4,),
    }
    assert model(BATCH["input_ids"]).logits.isfinite().all()


class Wrong(Means):
    wrong: ClassVar[dict[str, Tensor]] = {}

    def values(self) -> dict[str, Tensor]:
        return super().values() | self.wrong


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": torch.zeros(2, 3)}, r"layout\.mean must have the shape \(2, 1, 8\), got \(2, 3\)"),
        ({"mean": torch.full((2, 1, 8), torch.nan)}, r"layout\.mean is not finite"),
        ({"more": torch.zeros(1)}, r"layout\.more was fitted, but its method has no such parameter"),
    ],
)
def test_what_a_fitter_gives_is_checked_and_nothing_changes(monkeypatch, values, message) -> None:
    model = crisp.sparsify(distilbert(), NearMean())
    monkeypatch.setattr(Wrong, "wrong", values)
    monkeypatch.setattr(NearMean, "fitter", lambda self, shape, gold, seed=0: Wrong(self, shape, seed))
    with pytest.raises(ValueError, match=message):
        crisp.fit(model, [BATCH])
    assert fitted(model) == {}


def test_what_cannot_be_fitted() -> None:
    model = crisp.sparsify(distilbert(), NearMean())
    with pytest.raises(ValueError, match="there was no batch"):
        crisp.fit(model, [])
    with pytest.raises(
        TypeError, match="read once for each of 4 layers: expected a DataLoader or a list, got"
    ):
        crisp.fit(model, iter([BATCH]))
    with pytest.raises(ValueError, match="at least 2 examples, one of which is held out, got 1"):
        crisp.fit(model, [{name: rows[:1] for name, rows in BATCH.items()}])
    with pytest.raises(TypeError, match="mappings of the model's arguments, got tuple"):
        crisp.fit(model, [(BATCH["input_ids"],)])
    with pytest.raises(ValueError, match="is not sparse"):
        crisp.fit(distilbert(), [BATCH])
    with pytest.raises(
        ValueError, match=r"nothing to fit: topk:sparsity=0\.5 has no parameters that are fitted"
    ):
        crisp.fit(crisp.sparsify(distilbert(), TopK(0.5)), [BATCH])
    assert fitted(model) == {}
