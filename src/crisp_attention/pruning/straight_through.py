"""Masks through which gradients pass: pruned weights are trained on, and may come back (section 4.6)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import Matrix
from crisp_attention.pruning.patterns import Pattern, spread, tiles_of
from crisp_attention.pruning.selection import keep_in_groups

ESTIMATORS = ("none", "ste", "sr-ste")
DECAY = 2e-4  # of SR-STE, towards zero, of weights that are not kept


class StraightThrough(Masks):
    """Masks over dense weights that training goes on changing: the model computes with the kept ones.

    Inside `held()` an optimizer sees the dense weights, and gradients of the loss with the kept ones; after each step
    the weights that N:M keeps are chosen again, by the scores of the dense weights, within the same blocks.

    Attributes
    ----------
    dense
        The dense weights by name, laid out like the parameters. An interrupted loop needs them to go on; at the end
        they are dropped.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        kept: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        pattern: Pattern,
        importance: Mapping[str, Tensor],
        estimator: str,
    ) -> None:
        super().__init__(matrices, kept)
        self.dense, self.pattern, self.importance = dict(dense), pattern, importance
        self.decay = DECAY if estimator == "sr-ste" else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """All that an interrupted loop needs to go on, by name; `of_tensors` is the inverse."""
        parts = {"dense": self.dense, "kept": self.kept, "importance": self.importance}
        return {f"{part}.{name}": each for part, of in parts.items() for name, each in of.items()}

    @classmethod
    def of_tensors(
        cls, matrices: Sequence[Matrix], tensors: Mapping[str, Tensor], pattern: Pattern, estimator: str
    ) -> "StraightThrough":
        """The masks that `tensors` describe, for the same layers. Raises KeyError if one of them lacks."""

        def part(name: str) -> dict[str, Tensor]:
            return {each.name: tensors[f"{name}.{each.name}"].to(each.weight.device) for each in matrices}

        return cls(matrices, part("kept"), part("dense"), pattern, part("importance"), estimator)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Train the dense weights inside the block; the model has the kept ones, also afterwards."""

        def before(optimizer: Optimizer, *_: Any) -> None:
            if self._has_any(optimizer):
                self._give_dense()

        def after(optimizer: Optimizer, *_: Any) -> None:
            if self._has_any(optimizer):
                self._take_dense()

        self.zero()
        with ExitStack() as stack:
            stack.callback(register_optimizer_step_pre_hook(before).remove)
            stack.callback(register_optimizer_step_post_hook(after).remove)
            yield

    @torch.no_grad()
    def _give_dense(self) -> None:
        for each in self.matrices:
            each.weight.copy_(self.dense[each.name])
            if self.decay and each.weight.grad is not None:
                pruned = ~self._laid_out[id(each.weight)]
                each.weight.grad.add_(each.weight * pruned, alpha=self.decay)

    @torch.no_grad()
    def _take_dense(self) -> None:
        for each in self.matrices:
            self.dense[each.name].copy_(each.weight)
            if self.pattern.groups_fit(each):
                self._choose(each)
        self.zero()

    def _choose(self, matrix: Matrix) -> None:
        scores = matrix.rows(self.dense[matrix.name]).abs() * self.importance[matrix.name]
        kept = keep_in_groups(scores, self.pattern)
        if self.pattern.blocks_fit(matrix):
            kept &= self._blocks(matrix.name)
        self.kept[matrix.name] = kept
        self._laid_out[id(matrix.weight)] = matrix.back(kept)

    def _blocks(self, name: str) -> Tensor:
        """The kept blocks, as weights; N:M keeps some of each."""
        size = self.pattern.block_size
        assert size is not None
        return spread(tiles_of(self.kept[name], size).flatten(2).any(dim=2), size)
