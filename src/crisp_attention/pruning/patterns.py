"""Which zeros are allowed: some of each group of inputs, whole blocks, or both."""

import re
from dataclasses import dataclass

from torch import Tensor

from crisp_attention.pruning.matrices import Matrix

BLOCK_SIZES = (8, 16, 32, 64)


def tiles_of(rows: Tensor, size: int) -> Tensor:
    """A matrix (R · B, C · B) as square blocks (R, C, B, B)."""
    return rows.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)


def spread(blocks: Tensor, size: int) -> Tensor:
    """A value for each block (R, C) as one for each weight in it, (R · B, C · B)."""
    return blocks.repeat_interleave(size, 0).repeat_interleave(size, 1)


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of each group of `of` inputs, within square blocks of `block_size` that are kept or pruned whole.

    Without groups `kept` and `of` are 1, without blocks `block_size` is None.
    """

    kept: int
    of: int
    block_size: int | None

    @classmethod
    def parse(cls, groups: str | None, block_size: int | None) -> "Pattern":
        """From groups such as "2:4". Raises ValueError for what is no pattern."""
        kept = of = 1
        if groups is not None:
            match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", groups)
            kept, of = (int(each) for each in match.groups()) if match else (0, 0)
            if not kept < of:
                raise ValueError(
                    f"pattern must be N:M with N below M, such as '2:4', or None, got {groups!r}"
                )
        if block_size is None:
            if groups is None:
                raise ValueError("pattern and block_size are both None: expected groups, blocks or both")
        elif block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"block_size must be one of {sizes}, or None, got {block_size!r}")
        elif block_size % of:
            raise ValueError(f"pattern {groups} does not divide blocks of {block_size}: {block_size} / {of}")
        return cls(kept, of, block_size)

    def __str__(self) -> str:
        parts = [f"{self.kept}:{self.of}"] if self.has_groups else []
        return " in ".join(parts + ([f"blocks of {self.block_size}"] if self.block_size else []))

    @property
    def has_groups(self) -> bool:
        """Whether there is more to it than blocks."""
        return self.of > 1

    @property
    def density(self) -> float:
        """The share of weights that stays in a kept block."""
        return self.kept / self.of

    def groups_fit(self, matrix: Matrix) -> bool:
        """Whether there are groups, and they divide the inputs of a matrix."""
        return self.has_groups and matrix.channels % self.of == 0

    def blocks_fit(self, matrix: Matrix) -> bool:
        """Whether there are blocks, and they divide a matrix. In a convolution they may span positions."""
        size = self.block_size
        return size is not None and not any(each % size for each in matrix.shape)

    def lacks(self, matrix: Matrix) -> str | None:
        """Why a matrix is left as it is, or None."""
        if self.groups_fit(matrix) or self.blocks_fit(matrix):
            return None
        outputs, inputs = matrix.shape
        return f"{outputs} x {inputs} does not divide into {self}"
