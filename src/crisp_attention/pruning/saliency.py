"""How much weights matter to the loss, by its gradients (section 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from crisp_attention.pruning.matrices import Matrix

SALIENCIES = ("taylor", "signed", "magnitude")


class Gradients:
    """Gradients of weights, averaged over losses: their sizes, and themselves."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.matrices = list(matrices)
        self.losses = 0
        self._sizes, self._signed = (
            [torch.zeros_like(each.weight, dtype=torch.float32) for each in matrices] for _ in range(2)
        )

    def add(self, loss: Tensor, *, scale: float = 1.0) -> None:
        """Add those of one loss, a scalar; what the parameters have as gradients stays as it is.

        `scale` is what the loss was multiplied by so that gradients do not vanish in float16. Raises ValueError if a
        gradient is not finite, or the loss does not depend on a weight.
        """
        found = torch.autograd.grad(loss, [each.weight for each in self.matrices], allow_unused=True)
        for each, gradient in zip(self.matrices, found, strict=True):
            if gradient is None:
                raise ValueError(f"the loss does not depend on the weight of {each.name}: skip that layer")
            if not gradient.isfinite().all():
                raise ValueError(f"a gradient of {each.name} is not finite")
        self.losses += 1
        for gradient, size, signed in zip(found, self._sizes, self._signed, strict=True):
            own = gradient.float() / scale
            size += own.abs()
            signed += own

    def share(self) -> None:
        """Add up what several processes have found, where there are several: all then have the same.

        Raises ValueError, in all of them, where none has found anything.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        losses = torch.tensor(float(self.losses), device=self._sizes[0].device)
        for each in (losses, *self._sizes, *self._signed):
            distributed.all_reduce(each)
        self.losses = int(losses)

    def importance(self, saliency: str) -> dict[str, Tensor]:
        """What the size of a weight is multiplied by to score it later: mean |∂L/∂W|, 1 for magnitude, by name."""
        sizes = zip(self.matrices, self._sizes, strict=True)
        if saliency == "magnitude":
            return {each.name: torch.ones_like(each.rows(size)) for each, size in sizes}
        return {each.name: each.rows(size) / self.losses for each, size in sizes}

    def scores(self, saliency: str = "taylor") -> dict[str, Tensor]:
        """Scores of all weights by name, (outputs, inputs), larger for what matters more.

        `taylor`: |W| mean |∂L/∂W| (the paper's). `signed`: -W mean ∂L/∂W, what pruning the weight adds to the loss, to
        first order; less than 0 for weights that hurt. `magnitude`: |W|, which needs no gradients.

        Raises ValueError where gradients are needed and no loss was added.
        """
        if saliency != "magnitude" and not self.losses:
            raise ValueError(f"saliency {saliency!r} needs gradients: expected at least one batch, got none")
        found = {}
        for each, size, signed in zip(self.matrices, self._sizes, self._signed, strict=True):
            weight = each.weight.detach().float()
            if saliency == "magnitude":
                score = weight.abs()
            else:
                score = (weight.abs() * size if saliency == "taylor" else -weight * signed) / self.losses
            found[each.name] = each.rows(score)
        return found
