"""Which weights of a model are kept, and keeping the others at zero."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from crisp_attention.pruning.matrices import Matrix


class Masks:
    """Masks by the names of matrices, bool (outputs, inputs), True for weights that are kept."""

    def __init__(self, matrices: Sequence[Matrix], kept: Mapping[str, Tensor]) -> None:
        self.matrices = list(matrices)
        self.kept = {each.name: kept[each.name] for each in matrices}
        self._laid_out = {id(each.weight): each.back(self.kept[each.name]) for each in matrices}

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> "Masks":
        """Those of weights as they are: what is zero is pruned, unless all of a matrix is, as at its start."""
        zeros = {each.name: each.rows(each.weight.detach()) == 0 for each in matrices}
        return cls(matrices, {name: ~each if not each.all() else each for name, each in zeros.items()})

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned."""
        kept = sum(int(mask.sum()) for mask in self.kept.values())
        return 1 - kept / sum(mask.numel() for mask in self.kept.values())

    @torch.no_grad()
    def zero(self) -> None:
        """Make all pruned weights zero, also those that are not finite."""
        for each in self.matrices:
            each.weight.masked_fill_(~self._laid_out[id(each.weight)], 0.0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep pruned weights at zero inside the block, whatever optimizer of torch's kind steps.

        Their gradients are zero too, so that neither momentum nor the norm that gradients are clipped by knows them.
        """

        def after(optimizer: Optimizer, *_: Any) -> None:
            if self._has_any(optimizer):
                self.zero()

        self.zero()
        with ExitStack() as stack:
            for each in (each for each in self.matrices if each.weight.requires_grad):
                mask = self._laid_out[id(each.weight)]
                handle = each.weight.register_hook(lambda gradient, mask=mask: gradient * mask)
                stack.callback(handle.remove)
            stack.callback(register_optimizer_step_post_hook(after).remove)
            yield
        self.zero()

    def _has_any(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer steps one of these weights."""
        own = {id(each.weight) for each in self.matrices}
        return any(id(each) in own for group in optimizer.param_groups for each in group["params"])
