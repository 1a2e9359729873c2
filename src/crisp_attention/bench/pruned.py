"""The part `pruning`: layers and a model whose weights are pruned in blocks, against the dense ones."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from crisp_attention.bench.contender import CRISP, DENSE, Absent, Call
from crisp_attention.bench.results import Pruned
from crisp_attention.bench.rounds import Effort, Timed, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import CheckpointError
from crisp_attention.kernels.dispatch import REFERENCE
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.models.apply import sparsify
from crisp_attention.pruning.compressed import BlockLinear, compress
from crisp_attention.pruning.steps import step
from crisp_attention.runs.sources import MINILM, minilm_folder

UP, DOWN = (
    (768, 3072),
    (3072, 768),
)  # inputs and outputs: the layers of a feed-forward network of BERT's width
SEVERAL, ONE = 512, 1  # inputs at a time: a batch, and decoding
COPIES = (
    12  # that one row goes through, each with weights of its own, as in a model: those of one stay in caches
)
BLOCK = 32  # the size where none is given
AGREEMENT = 1e-4  # of outputs, relative to the largest
MODEL = "MiniLM"
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A linear layer to be pruned. `groups`: N:M within blocks, None for blocks alone."""

    inputs: int
    outputs: int
    rows: int
    sparsity: float
    block_size: int = BLOCK
    groups: str | None = None


@dataclass(frozen=True)
class Whole:
    """A model to be pruned. `attention`: the sparsity of block top-k in it, None for dense attention."""

    batch: int
    length: int
    sparsity: float
    attention: float | None = None
    groups: str | None = None

    def __str__(self) -> str:
        return MODEL if self.attention is None else f"{MODEL} with block top-k"


SHARES = (0.4, 0.5, 0.6, 0.75, 0.9)
LAYERS = (
    *(Layer(*shape, rows, share) for shape in (UP, DOWN) for rows in (SEVERAL, ONE) for share in SHARES),
    *(Layer(*UP, SEVERAL, 0.9, size) for size in (8, 16, 64)),
    *(Layer(*UP, rows, share, groups="2:4") for rows in (SEVERAL, ONE) for share in (0.75, 0.9)),
)
MODELS = (
    *(Whole(32, 128, share) for share in (0.75, 0.9)),
    Whole(32, 128, 0.9, groups="2:4"),
    *(Whole(batch, 512, 0.9, attention) for attention in (None, 0.8) for batch in (8, 1)),
)
QUICK = ((Layer(*UP, SEVERAL, 0.75), Layer(*UP, SEVERAL, 0.9)), (Whole(4, 64, 0.9),))


def planned(quick: bool) -> tuple[tuple[Layer, ...], tuple[Whole, ...]]:
    """What is measured."""
    return QUICK if quick else (LAYERS, MODELS)


@torch.no_grad()
def measure_pruned(effort: Effort, quick: bool, told: Callable[[str], None]) -> list[Pruned]:
    """Time layers and models, dense and compressed, in float32 on the CPU; weights are pruned by their size."""
    layers, models = planned(quick)
    found = []
    for layer in layers:
        pattern = _pattern(layer.groups, layer.block_size)
        told(
            f"pruning, {layer.inputs} to {layer.outputs}, {layer.sparsity:.0%}, {pattern}, {layer.rows} rows"
        )
        found.append(_layer(layer, effort))
    for model in models:
        pattern = _pattern(model.groups, BLOCK)
        told(f"pruning, {model}, {model.sparsity:.0%}, {pattern}, {model.batch} x {model.length} tokens")
        found.append(_model(model, effort))
    return found


def _layer(asked: Layer, effort: Effort) -> Pruned:
    torch.manual_seed(0)
    dense = nn.Linear(asked.inputs, asked.outputs)
    step(dense, [], asked.sparsity, pattern=asked.groups, block_size=asked.block_size, saliency="magnitude")
    own = BlockLinear.of(dense.weight, dense.bias, asked.block_size)
    states = torch.randn(asked.rows, asked.inputs)
    check(dense(states), own(states))
    copies = COPIES if asked.rows == ONE else 1
    calls: dict[str, Call] = {
        name: partial(_each, [deepcopy(layer) for _ in range(copies)], states)
        for name, layer in ((DENSE, dense), (CRISP, own))
    }
    return Pruned(
        subject=f"{asked.inputs} to {asked.outputs}",
        size=f"{asked.rows}",
        pattern=_pattern(asked.groups, asked.block_size),
        sparsity=float((dense.weight == 0).float().mean()),
        target=asked.sparsity,
        layer_bytes=_bytes(own.state_dict()) / _bytes(dense.state_dict()),
        timed=_timed(calls, effort, copies),
    )


def _model(asked: Whole, effort: Effort) -> Pruned:
    size, pattern = f"{asked.batch} x {asked.length}", _pattern(asked.groups, BLOCK)
    try:
        dense: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            minilm_folder(), num_labels=2, attn_implementation="sdpa"
        )
    except CheckpointError as error:
        absent = [Absent(MINILM, str(error))]
        return Pruned(str(asked), size, pattern, asked.sparsity, asked.sparsity, absent=absent)
    masks = step(
        dense.eval(), [], asked.sparsity, pattern=asked.groups, block_size=BLOCK, saliency="magnitude"
    )
    own, meant = compress(dense), dense
    tokens = torch.randint(1000, 20000, (asked.batch, asked.length))
    layers = tuple(f"{name}." for name in masks.kept)
    memory, saved = ([each(model) for model in (own, dense)] for each in (nn.Module.state_dict, _saved))
    if asked.attention is not None:
        method = BlockTopK(asked.attention)
        sparsify(own, method)
        meant = sparsify(deepcopy(dense), method, backend=REFERENCE)
    check(meant(tokens).logits, own(tokens).logits)
    return Pruned(
        subject=str(asked),
        size=size,
        pattern=pattern,
        sparsity=masks.sparsity,
        target=asked.sparsity,
        layer_bytes=_share(memory, layers),
        saved_layer_bytes=_share(saved, layers),
        saved_bytes=_share(saved, ("",)),
        timed=_timed({DENSE: lambda: dense(tokens), CRISP: lambda: own(tokens)}, effort),
    )


def _pattern(groups: str | None, size: int) -> str:
    return f"{groups} in blocks of {size}" if groups else f"blocks of {size}"


def _each(layers: list[nn.Module], states: Tensor) -> None:
    for layer in layers:
        layer(states)


def check(dense: Tensor, own: Tensor) -> None:
    """Raise RuntimeError unless outputs agree but for the order of additions."""
    error = float((dense - own).abs().max() / dense.abs().max())
    if not error <= AGREEMENT:
        raise RuntimeError(
            f"compressed and dense outputs differ by {error:.1e} of the largest; at most {AGREEMENT}"
        )


def _timed(calls: Mapping[str, Call], effort: Effort, copies: int = 1) -> list[Timed]:
    for call in calls.values():
        warm_up(call)
    clock = clock_of("cpu")
    return compared(interleaved(calls, effort, lambda call: clock(call) / copies), DENSE)


def _share(states: list[State], names: tuple[str, ...]) -> float:
    """The bytes of what begins with one of these names, in the first as a ratio to the second."""
    own, dense = (_bytes({n: each for n, each in state.items() if n.startswith(names)}) for state in states)
    return own / dense


def _bytes(state: State) -> int:
    return sum(each.nbytes for each in state.values())


def _saved(model: Any) -> State:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")
