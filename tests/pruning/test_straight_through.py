"""Gradients that pass through masks to dense weights."""

import pytest
import torch
from torch import nn

from crisp_attention import pruning
from crisp_attention.pruning.straight_through import DECAY, StraightThrough
from tests.pruning.test_masks import bert
from tests.pruning.test_steps import BATCHES


def one_layer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16))


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


BATCH = {"x": torch.randn(4, 16), "y": torch.randn(4, 16)}


@pytest.mark.parametrize(("ste", "decay"), [("ste", 0.0), ("sr-ste", DECAY)])
def test_a_step_of_sgd_is_that_of_the_formula(ste: str, decay: float) -> None:
    model = one_layer()
    weight = model[0].weight
    dense = weight.detach().clone()
    masks = pruning.step(model, [BATCH], 0.75, block_size=8, ste=ste, loss=loss)
    mask = masks.kept["0"].clone()
    own = (dense * mask).requires_grad_()
    (gradient,) = torch.autograd.grad(
        (torch.nn.functional.linear(BATCH["x"], own, model[0].bias.detach()) - BATCH["y"]).square().mean(),
        own,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.held():
        loss(model, BATCH).backward()
        optimizer.step()
        expected = dense - 0.1 * (gradient + decay * ~mask * dense)
        assert isinstance(masks, StraightThrough)
        torch.testing.assert_close(masks.dense["0"], expected)
        torch.testing.assert_close(weight.detach(), expected * masks.kept["0"])


def test_weights_come_back_within_their_blocks_and_the_pattern_holds() -> None:
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    masks = pruning.step(model, BATCHES, 0.7, block_size=8, ste="ste")
    first = {name: each.clone() for name, each in masks.kept.items()}
    with masks.held():
        for batch in BATCHES * 3:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            for each in masks.matrices:
                rows = each.rows(each.weight.detach()) != 0
                assert not (rows & ~masks.kept[each.name]).any()
                assert rows.unflatten(1, (-1, 4)).sum(dim=2).max() <= 2
    back = {name: each & ~first[name] for name, each in masks.kept.items()}
    assert sum(int(each.sum()) for each in back.values()) > 0
    for name, each in masks.kept.items():
        blocks = first[name].unflatten(1, (-1, 8)).unflatten(0, (-1, 8)).any(dim=3).any(dim=1)
        now = each.unflatten(1, (-1, 8)).unflatten(0, (-1, 8)).any(dim=3).any(dim=1)
        assert now.equal(blocks)
    assert masks.sparsity == pytest.approx(
        1 - sum(int(e.sum()) for e in first.values()) / sum(e.numel() for e in first.values())
    )


def test_blocks_come_back_in_the_next_step() -> None:
    model = one_layer()
    with torch.no_grad():
        model[0].weight[:8, :8] = 1e-4
    masks = pruning.step(model, [], 0.75, block_size=8, saliency="magnitude", ste="ste")
    assert not masks.kept["0"][:8, :8].any()
    assert isinstance(masks, StraightThrough)
    masks.dense["0"][:8, :8] = 100.0  # as if training had
    again = pruning.step(model, [], 0.75, block_size=8, saliency="magnitude", ste="ste", before=masks)
    assert again.kept["0"][:8, :8].sum() == 32


def test_what_is_saved_half_way_continues_alike() -> None:
    model = bert()
    masks = pruning.step(model, BATCHES, 0.7, block_size=8, ste="sr-ste")
    assert isinstance(masks, StraightThrough)
    saved = {name: each.clone() for name, each in masks.tensors().items()}
    other = StraightThrough.of_tensors(masks.matrices, saved, masks.pattern, "sr-ste")
    assert other.decay == masks.decay
    assert all(each.equal(other.tensors()[name]) for name, each in masks.tensors().items())


def test_dense_weights_of_other_layers_are_refused() -> None:
    model = one_layer()
    masks = pruning.step(model, [BATCH], 0.75, block_size=8, loss=loss)
    with pytest.raises(ValueError, match="before must be the masks of a step of the same layers with ste"):
        pruning.step(model, [BATCH], 0.75, block_size=8, loss=loss, ste="ste", before=masks)
