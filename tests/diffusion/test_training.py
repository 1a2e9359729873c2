"""Fine-tuning of a small diffusion transformer: what is trained, and that it repeats."""

import pytest
import torch
from torch import Tensor, nn

import crisp_attention as crisp
from crisp_attention.diffusion.digits import Digits
from crisp_attention.diffusion.model import build, generate
from crisp_attention.diffusion.scores import held_out_loss
from crisp_attention.diffusion.training import finetune, looks, pretrain
from crisp_attention.diffusion.variants import Variant, variants
from crisp_attention.errors import OptionError

pytest.importorskip("diffusers")
DIGITS = Digits.read(20)
KNOWN = {
    each.label: each for each in variants((0.9,), ("diffusion", "distillation"), ("all", "projection"), 2)
}


def look(model: nn.Module) -> Tensor:
    return held_out_loss(model, DIGITS)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return pretrain(build(0), DIGITS, 3, 0, lambda step: None)


def tuned(dense: nn.Module, variant: Variant, steps: int = 2) -> tuple[nn.Module, dict[int, Tensor]]:
    found = finetune(dense, variant, DIGITS, steps, 0, look, lambda step: None)
    return found.model, found.losses


def test_steps_that_are_looked_at() -> None:
    assert looks(500) == [0, 50, 100, 250, 500]
    assert looks(120) == [0, 50, 100, 120]
    assert looks(4) == [0, 4]


@pytest.mark.parametrize(
    "label", ["SLA 90 %", pytest.param("SLA 90 %, distillation", marks=pytest.mark.slow)]
)
def test_the_dense_model_stays_as_it_was_and_the_same_seed_repeats(dense: nn.Module, label: str) -> None:
    before = {name: each.clone() for name, each in dense.state_dict().items()}
    (_, first), (model, again) = tuned(dense, KNOWN[label]), tuned(dense, KNOWN[label])
    assert all(first[step].equal(again[step]) for step in (0, 2))
    assert not first[0].equal(first[2])
    assert all(each.equal(before[name]) for name, each in dense.state_dict().items())
    assert not crisp.is_sparse(dense)
    assert crisp.is_sparse(model)


def test_of_projections_alone_nothing_else_changes(dense: nn.Module) -> None:
    model, losses = tuned(dense, KNOWN["SLA 90 %, projection alone"])
    before = dense.state_dict()
    changed = {
        name
        for name, each in model.state_dict().items()
        if name not in before or not each.equal(before[name])
    }
    assert len(changed) == 2 * 4
    assert all("crisp_learned" in name for name in changed)
    assert all(model.state_dict()[name].any() for name in changed)
    _, other = tuned(dense, KNOWN["sparse only 90 %"])
    torch.testing.assert_close(
        losses[0], other[0], rtol=1e-3, atol=0
    )  # as the projection is zero at the start


def test_generated_digits_depend_on_the_seed_alone(dense: nn.Module) -> None:
    images, classes = generate(dense, 12, 0)
    assert images.shape == (12, 1, 8, 8)
    assert images.abs().max() <= 1
    assert classes.tolist() == [*range(10), 0, 1]
    assert generate(dense, 12, 0)[0].equal(images)
    assert not generate(dense, 12, 1)[0].equal(images)


def test_variants() -> None:
    assert [each.label for each in variants((0.95, 0.8), ("diffusion",), ("all",), 2)] == [
        "dense",
        "SLA 80 %",
        "sparse only 80 %",
        "plain sum 80 %",
        "SLA 95 %",
        "sparse only 95 %",
        "plain sum 95 %",
        "linear only",
    ]
    assert KNOWN["SLA 90 %"].method == crisp.SparseLinear(0.1, block_size=2)
    assert KNOWN["SLA 90 %, distillation, projection alone"].name == "sla-90-distillation-projection-alone"
    with pytest.raises(OptionError, match="loss must be one of diffusion, distillation, got 'mse'"):
        variants((0.9,), ("mse",), ("all",), 2)
