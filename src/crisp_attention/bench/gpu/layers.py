"""Linear layers with weights pruned in blocks, against dense ones and against torch's 2:4."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from crisp_attention.bench.contender import Call
from crisp_attention.bench.gpu.cells import CUBLAS, FORWARD, Cell
from crisp_attention.bench.gpu.measured import Candidate, Row, difference, measure, unmeasured
from crisp_attention.bench.gpu.parts import Emit, Setting
from crisp_attention.pruning.compressed import BlockLinear
from crisp_attention.pruning.steps import step

TWO_OF_FOUR = "torch's 2:4, 50 %"
BLOCKS = {f"blocks of {size}, {share:.0%}": (size, share) for size in (32, 64) for share in (0.75, 0.9)}
NAMES = (CUBLAS, *BLOCKS, TWO_OF_FOUR)
ONE, COPIES = 1, 8  # one row goes through so many layers in turn, each with weights of its own, as in a model


@dataclass(frozen=True)
class Layer:
    """A linear layer and how many rows it is given."""

    inputs: int
    outputs: int
    rows: int
    dtype: str = "bfloat16"

    @property
    def cell(self) -> Cell:
        """As the table has it."""
        rows = "one row" if self.rows == ONE else f"{self.rows:,} rows"
        return Cell(
            f"pruned layers, {self.dtype}", f"{self.inputs:,} to {self.outputs:,}, {rows}", FORWARD, NAMES
        )


LAYERS = tuple(
    Layer(*shape, rows, dtype)
    for dtype in ("bfloat16", "float32")
    for shape in ((768, 3072), (2048, 8192))
    for rows in (4096, ONE)
)


def run(setting: Setting, emit: Emit, layers: tuple[Layer, ...] = LAYERS) -> None:
    """Measure layers without gradients."""
    torch.manual_seed(0)
    for layer in layers[:1] if setting.quick else layers:
        print(f"{layer.cell.group}, {layer.cell.column}", flush=True)
        found = unmeasured(layer.cell, layer.dtype) if setting.late else _measured(layer, setting)
        emit(found.plain())


@torch.no_grad()
def _measured(layer: Layer, setting: Setting) -> Row:
    device, dtype = setting.device, getattr(torch, layer.dtype)
    dense = nn.Linear(layer.inputs, layer.outputs).requires_grad_(False)
    states = torch.randn(layer.rows, layer.inputs).to(device, dtype)
    copies = COPIES if layer.rows == ONE else 1

    def candidate(
        name: str, make: Callable[[nn.Linear], nn.Module], prune: Callable[[nn.Linear], None]
    ) -> Candidate:
        @cache
        def pruned() -> nn.Linear:
            prune(found := deepcopy(dense))
            return found.to(device, dtype)

        @cache
        def own() -> nn.Module:
            return make(deepcopy(pruned()))

        def check() -> float:
            return difference([own()(states)], [deepcopy(pruned()).float()(states.float())])

        def prepare() -> Call:
            modules = [own(), *(make(deepcopy(pruned())) for _ in range(copies - 1))]

            @torch.no_grad()
            def through() -> None:
                for module in modules:
                    module(states)

            return through

        return Candidate(name, prepare, check, optional=name in (CUBLAS, TWO_OF_FOUR))

    candidates = [candidate(CUBLAS, lambda linear: linear, lambda linear: None)]
    candidates += [
        candidate(name, partial(_blocks, size), partial(_prune, share, None, size))
        for name, (size, share) in BLOCKS.items()
    ]
    candidates.append(candidate(TWO_OF_FOUR, _semi_structured, partial(_prune, 0.5, "2:4", None)))
    return measure(layer.cell, layer.dtype, candidates, setting, copies)


def _prune(share: float, pattern: str | None, size: int | None, linear: nn.Linear) -> None:
    step(linear, [], share, pattern=pattern, block_size=size, saliency="magnitude")


def _blocks(size: int, linear: nn.Linear) -> nn.Module:
    return BlockLinear.of(linear.weight, linear.bias, size).requires_grad_(False)


def _semi_structured(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(to_sparse_semi_structured(linear.weight), requires_grad=False)
    return linear
