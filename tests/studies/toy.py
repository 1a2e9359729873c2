"""A treatment that is no attention: the smallest weights of every linear layer are zero, and stay so."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import torch
from torch import nn

from crisp_attention.runs.treatment import ModelTreatment


@dataclass(frozen=True)
class Magnitude(ModelTreatment):
    """Linear layers without the smallest of their weights."""

    sparsity: float = 0.5
    kind: ClassVar[str] = "magnitude"
    words: ClassVar[str] = "weights"

    @property
    def spec(self) -> str:
        return f"magnitude:sparsity={self.sparsity}"

    def at(self, sparsity: float) -> "Magnitude":
        return replace(self, sparsity=sparsity)

    def apply(self, model: nn.Module) -> None:
        for _, layer in linear(model):
            size = layer.weight.detach().abs()
            dropped = round(self.sparsity * size.numel())
            mask = torch.ones(size.numel())
            mask[size.flatten().argsort()[:dropped]] = 0
            mask = mask.view_as(size)
            with torch.no_grad():
                layer.weight.mul_(mask)
            layer.weight.register_hook(mask.mul)

    def measure(self, model: nn.Module) -> pd.DataFrame:
        rows = [
            {"layer": number, "name": name, "sparsity": float((layer.weight == 0).float().mean())}
            for number, (name, layer) in enumerate(linear(model))
        ]
        return pd.DataFrame(rows)


def linear(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
