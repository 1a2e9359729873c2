"""How good a diffusion model is: its denoising loss, and the digits that it generates."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crisp_attention.diffusion.digits import Classifier, Digits
from crisp_attention.diffusion.model import NOISE_STEPS, diffusion_loss, noisy
from crisp_attention.models.borrowing import evaluating

TIMES = 4  # noise steps at which every held-out image is looked at
BATCH = 250


@dataclass(frozen=True)
class Quality:
    """Of generated digits: the share that is recognised as what it should be, and the Fréchet distance of features."""

    accuracy: float
    frechet: float


@torch.no_grad()
def held_out_loss(model: nn.Module, digits: Digits) -> Tensor:
    """The denoising loss of every held-out image (N,), mean over noise steps; always with the same noise."""
    generator = torch.Generator().manual_seed(1)
    count = len(digits.held_out)
    # every image at steps of its own, spread evenly over all of them
    places = torch.arange(TIMES * count).reshape(count, TIMES).T
    found = []
    with evaluating(model):
        for steps in places * NOISE_STEPS // (TIMES * count):
            noise = torch.randn(digits.held_out.shape, generator=generator)
            parts = zip(
                *(each.split(BATCH) for each in (digits.held_out, digits.classes, steps, noise)), strict=True
            )
            losses = [diffusion_loss(model, noisy(*part), part[-1]) for part in parts]
            found.append(torch.cat(losses))
    return torch.stack(found).mean(dim=0)


@torch.no_grad()
def quality(classifier: Classifier, images: Tensor, classes: Tensor, digits: Digits) -> Quality:
    """Of images that should be of these classes, against the held-out ones."""
    right = classifier(images).argmax(dim=-1) == classes
    return Quality(
        float(right.double().mean()),
        frechet_distance(classifier.features(images), classifier.features(digits.held_out)),
    )


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) of two samples (N, F): that of normal distributions like them."""
    one, other = one.double(), other.double()
    first, second = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    common = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    means = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    return float(means + first.trace() + second.trace() - 2 * common)
