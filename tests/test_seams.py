"""The parts that others write: they train, save, load, run on our kernels, and cost what CONTRIBUTING says."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import Method, TopK, parse
from crisp_attention.methods.part import Part
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule
from tests.models.tiny import BATCH, distilbert, logits


@dataclass(frozen=True)
class Above(Rule):
    """Keep the keys whose score is at least `least`, and the row's first key."""

    least: float = 0.0

    name: ClassVar[str] = "above"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible & ((rows.scores >= self.least) | (visible.cumsum(dim=-1) == 1))


class Odd(TopK):
    """A subclass without a name of its own."""

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible & (visible.cumsum(dim=-1) % 2 == 1)


def test_a_rule_of_another_file_trains_saves_and_loads(tmp_path) -> None:
    assert parse("above:least=0.1") == Method(rule=Above(0.1))
    model = crisp.sparsify(distilbert(), Above(0.1))
    assert not logits(model).equal(logits(distilbert()))
    model(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
    assert all(each.grad is not None for each in model.parameters())
    model.save_pretrained(tmp_path)
    assert logits(crisp.load(tmp_path)).equal(logits(model))


def test_loading_without_the_class_names_what_to_import(tmp_path, monkeypatch) -> None:
    crisp.sparsify(distilbert(), Above(0.1)).save_pretrained(tmp_path)
    monkeypatch.delitem(crisp.methods.part._parts, "above")
    with pytest.raises(
        ValueError, match=r"unknown name 'above'; import the class Above of the module .*test_seams"
    ):
        crisp.load(tmp_path)


def test_a_subclass_without_a_name_works_and_is_asked_for_one_when_it_is_saved(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), Odd(0.5))
    assert {row.kernel for row in crisp.explain(model).rows} == {"reference"}
    assert not logits(model).equal(logits(crisp.sparsify(distilbert(), TopK(0.5))))
    with pytest.raises(ValueError, match=r"cannot be saved: .*Odd has no name of its own.* name: ClassVar"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Odd has no name of its own"):
        _ = Method(rule=Odd(0.5)).spec
    with pytest.raises(ValueError, match=r"'cpu' cannot compute this call .* the rule Odd"):
        logits(crisp.sparsify(model, Odd(0.5), backend="cpu"))


def test_one_name_is_one_class_and_a_class_that_is_defined_again_replaces_the_first() -> None:
    def cell() -> type[Part]:
        class Cell(TopK):
            name: ClassVar[str] = "cell"

        return Cell

    first, second = cell(), cell()
    assert type(parse("cell").rule) is second is not first
    for name in ("cell", "topk", "window"):
        with pytest.raises(ValueError, match=rf"the name '{name}' belongs to .*; choose another"):
            type("Other", (TopK,), {"name": name})
    with pytest.raises(ValueError, match="must be a word of letters"):
        type("Other", (TopK,), {"name": "a+b"})
