"""The methods that a profile knows the outcome of."""

from collections.abc import Sequence
from dataclasses import dataclass

from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import TopK

METHODS = {TopK.name: "top-k", BlockTopK.name: "blocks"}  # and in words
GRID = tuple(step / 40 for step in range(40))


@dataclass(frozen=True)
class Targets:
    """TopK, and BlockTopK with blocks of `block_size`, at the target `sparsities`, from 0 upwards."""

    block_size: int
    sparsities: tuple[float, ...]

    @classmethod
    def of(cls, block_size: int, further: Sequence[float]) -> "Targets":
        """The sparsities 0, 0.025 … 0.975 and `further` ones. Raises ValueError for what is none."""
        check_whole("block_size", block_size, 1)
        for each in further:
            check_number("sparsities", each, "[0, 1)")
        return cls(block_size, tuple(sorted({*GRID, *further})))

    def method(self, name: str, sparsity: float) -> Method:
        """The method of this name at a sparsity."""
        if name == TopK.name:
            return Method(rule=TopK(sparsity))
        return Method(layout=BlockTopK(sparsity, block_size=self.block_size))

    def find(self, method: Method) -> tuple[str, int]:
        """The name of a method and the index of its sparsity. Raises ValueError for an unknown one."""
        if method == Method():
            return TopK.name, 0
        if (sparsity := method.sparsity) is not None:
            for name in METHODS:
                if method == self.method(name, sparsity):
                    return name, self.index(sparsity)
        raise ValueError(
            f"the profile knows TopK(sparsity) and BlockTopK(sparsity, block_size={self.block_size}), "
            f"not {method.spec}"
        )

    def index(self, sparsity: float) -> int:
        """The index of a sparsity. Raises ValueError for one that is not known."""
        if sparsity not in self.sparsities:
            raise ValueError(
                f"the profile knows the sparsities {', '.join(f'{each:g}' for each in self.sparsities)}; "
                f"for {sparsity} call crisp.profile with sparsities=[{sparsity}]"
            )
        return self.sparsities.index(sparsity)
