"""Training the dense model from scratch, and fine-tuning a variant of it."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import crisp_attention as crisp
from crisp_attention.diffusion.digits import Digits
from crisp_attention.diffusion.model import NOISE_STEPS, diffusion_loss, noisy
from crisp_attention.diffusion.variants import Variant

PRETRAINING_BATCH, BATCH, CLIP = 64, 32, 1.0
PRETRAINING_RATE, RATE = 2e-3, 5e-4
WARM_UP = 50
LOOKS = (0, 50, 100, 250, 500, 1000, 2000, 5000)  # steps at which fine-tuning is looked at
Told = Callable[[int], None]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, and the held-out losses by image at the steps that were looked at."""

    model: nn.Module
    losses: dict[int, Tensor]


def pretrain(model: nn.Module, digits: Digits, steps: int, seed: int, told: Told) -> nn.Module:
    """Train a model in place, the learning rate falling as a cosine; `told` hears the number of each finished step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), PRETRAINING_RATE, weight_decay=0.0)
    falling = _falling(optimizer, steps, WARM_UP)
    model.eval()  # in which no class is dropped: that is for guidance, which is not used here

    def loss(batch: dict[str, object], noise: Tensor) -> Tensor:
        return diffusion_loss(model, batch, noise).mean()

    for step in range(steps):
        _update(model, optimizer, loss, digits.batch(PRETRAINING_BATCH, generator), generator)
        falling.step()
        told(step + 1)
    return model


def looks(steps: int) -> list[int]:
    """The steps at which fine-tuning is looked at."""
    return sorted({step for step in LOOKS if step < steps} | {steps})


def finetune(
    dense: nn.Module,
    variant: Variant,
    digits: Digits,
    steps: int,
    seed: int,
    look: Callable[[nn.Module], Tensor],
    told: Told,
) -> Tuned:
    """A copy of the dense model with the attention of a variant, fine-tuned on the batches that the seed decides.

    The learning rate falls to zero as a cosine.
    """
    model = deepcopy(dense).eval()
    if variant.method is not None:
        crisp.sparsify(model, variant.method)
    if variant.trained == "projection":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("crisp_learned" in name)
    taught = crisp.distill(model, dense) if variant.loss == "distillation" else None

    def loss(batch: dict[str, object], noise: Tensor) -> Tensor:
        return diffusion_loss(model, batch, noise).mean() if taught is None else taught(batch)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
    falling = _falling(optimizer, steps, 1)
    generator, at = torch.Generator().manual_seed(1000 + seed), looks(steps)
    found = {0: look(model)}
    for step in range(1, steps + 1):
        _update(model, optimizer, loss, digits.batch(BATCH, generator), generator)
        falling.step()
        if step in at:
            found[step] = look(model)
        told(step)
    return Tuned(model, found)


def _falling(optimizer: torch.optim.Optimizer, steps: int, warm_up: int) -> LambdaLR:
    return LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
    )


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[dict[str, object], Tensor], Tensor],
    images_and_classes: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    images, classes = images_and_classes
    steps = torch.randint(0, NOISE_STEPS, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    optimizer.zero_grad()
    loss(noisy(images, classes, steps, noise), noise).backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
