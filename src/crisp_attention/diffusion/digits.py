"""Handwritten digits for training and scoring, and a classifier that recognises them."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HELD_OUT = 500
STEPS, BATCH = 1500, 128


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) between -1 and 1 and their classes (N,), for training and held out."""

    train: Tensor
    train_classes: Tensor
    held_out: Tensor
    classes: Tensor

    @classmethod
    def read(cls, held_out: int = HELD_OUT) -> "Digits":
        """Those of scikit-learn, always the same: by default 500 held out, the other 1,297 for training."""
        values, labels = load_digits(return_X_y=True)
        images = torch.tensor(values / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        train, held = order[held_out:], order[:held_out]
        classes = torch.tensor(labels)
        return cls(images[train], classes[train], images[held], classes[held])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images and their classes, drawn with replacement."""
        rows = torch.randint(len(self.train), (size,), generator=generator)
        return self.train[rows], self.train_classes[rows]


class Classifier(nn.Module):
    """A perceptron that recognises digits; what precedes its last layer are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU()
        )
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.last(self.features(images))

    @classmethod
    def trained(cls, digits: Digits, steps: int = STEPS) -> "Classifier":
        """Trained on the training images with noise, always the same; the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = cls()
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
        for _ in range(steps):
            images, classes = digits.batch(BATCH, generator)
            noise = 0.1 * torch.randn(images.shape, generator=generator)
            loss = cross_entropy(model(images + noise), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.eval()
