"""How much weights matter to the loss, by its gradients (section 4.2)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_one_of
from crisp_attention.pruning.matrices import Matrix

SALIENCIES = ("taylor", "signed", "magnitude")


class Gradients:
    """Gradients of weights, averaged over backward passes: their sizes, and themselves."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.matrices = list(matrices)
        self.passes = {each.name: 0 for each in matrices}
        self._sizes = {each.name: torch.zeros_like(each.weight, dtype=torch.float32) for each in matrices}
        self._signed = {each.name: torch.zeros_like(each.weight, dtype=torch.float32) for each in matrices}

    @contextmanager
    def recorded(self, scale: Callable[[], float] = lambda: 1.0) -> Iterator[None]:
        """Record every backward pass inside the block, each by itself, however gradients are accumulated.

        `scale` says by what the loss is multiplied, as by a `GradScaler`. Passes with gradients that are not finite,
        which such a scaler skips, are not recorded.
        """

        def hook(matrix: Matrix) -> Callable[[Tensor], None]:
            def add(gradient: Tensor) -> None:
                found = gradient.detach().float() / scale()
                if bool(found.isfinite().all()):
                    self.passes[matrix.name] += 1
                    self._sizes[matrix.name] += found.abs()
                    self._signed[matrix.name] += found

            return add

        handles = [each.weight.register_hook(hook(each)) for each in self.matrices]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def scores(self, saliency: str = "taylor") -> dict[str, Tensor]:
        """Scores of all weights by name, (outputs, inputs), larger for what matters more.

        `taylor`: |W| mean |∂L/∂W| (the paper's). `signed`: -W mean ∂L/∂W, what pruning the weight adds to the loss, to
        first order; less than 0 for weights that hurt. `magnitude`: |W|, which needs no gradients.

        Raises ValueError for another word, and without a backward pass.
        """
        check_one_of("saliency", saliency, SALIENCIES)
        found = {}
        for each in self.matrices:
            weight = each.weight.detach().float()
            if saliency == "magnitude":
                score = weight.abs()
            elif not (passes := self.passes[each.name]):
                raise ValueError(
                    f"no gradient of {each.name} was recorded: expected a backward pass through it"
                )
            elif saliency == "taylor":
                score = weight.abs() * self._sizes[each.name] / passes
            else:
                score = -weight * self._signed[each.name] / passes
            found[each.name] = each.rows(score)
        return found
