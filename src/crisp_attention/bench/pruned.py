"""The part `pruning`: layers and a model whose weights are pruned in blocks, against the dense ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from crisp_attention.bench.contender import CRISP, DENSE, Absent
from crisp_attention.bench.results import Pruned
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import CheckpointError
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
AGREEMENT = 1e-4  # of outputs, relative to the largest
MODEL = "MiniLM"


@dataclass(frozen=True)
class Layer:
    """A linear layer to be pruned. `groups`: N:M within blocks, None for blocks alone."""

    inputs: int
    outputs: int
    rows: int
    sparsity: float
    block_size: int = 32
    groups: str | None = None


@dataclass(frozen=True)
class Whole:
    """A model to be pruned. `attention`: the sparsity of block top-k in it, None for dense attention."""

    batch: int
    length: int
    sparsity: float
    attention: float | None = None


SHARES = (0.4, 0.5, 0.6, 0.75, 0.9)
LAYERS = (
    *(Layer(*shape, rows, share) for shape in (UP, DOWN) for rows in (SEVERAL, ONE) for share in SHARES),
    *(Layer(*UP, SEVERAL, 0.9, size) for size in (8, 16, 64)),
    Layer(*UP, SEVERAL, 0.9, groups="2:4"),
)
MODELS = (Whole(32, 128, 0.75), Whole(32, 128, 0.9), Whole(8, 512, 0.9), Whole(8, 512, 0.9, attention=0.8))
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
        told(f"pruning, {layer.inputs} to {layer.outputs}, {layer.sparsity:.0%}, {layer.rows} rows")
        found.append(_layer(layer, effort))
    for model in models:
        told(f"pruning, {MODEL}, {model.sparsity:.0%}, {model.batch} x {model.length} tokens")
        found.append(_model(model, effort))
    return found


def _layer(asked: Layer, effort: Effort) -> Pruned:
    torch.manual_seed(0)
    dense = nn.Linear(asked.inputs, asked.outputs)
    step(dense, [], asked.sparsity, pattern=asked.groups, block_size=asked.block_size, saliency="magnitude")
    own = BlockLinear.of(dense.weight, dense.bias, asked.block_size)
    states = torch.randn(asked.rows, asked.inputs)
    check(dense(states), own(states))
    bytes_left = _bytes(own) / _bytes(dense)
    calls = {DENSE: partial(dense, states), CRISP: partial(own, states)}
    pattern = f"{asked.groups} in blocks" if asked.groups else "blocks"
    return Pruned(
        subject=f"{asked.inputs} to {asked.outputs}",
        size=f"{asked.rows}",
        pattern=f"{pattern} of {asked.block_size}",
        sparsity=float((dense.weight == 0).float().mean()),
        target=asked.sparsity,
        layer_bytes=bytes_left,
        timed=_timed(calls, effort),
    )


def _model(asked: Whole, effort: Effort) -> Pruned:
    size = f"{asked.batch} x {asked.length} tokens"
    name = MODEL if asked.attention is None else f"{MODEL} with block top-k"
    try:
        dense: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            minilm_folder(), num_labels=2, attn_implementation="sdpa"
        )
    except CheckpointError as error:
        absent = [Absent(MINILM, str(error))]
        return Pruned(name, size, "blocks of 32", asked.sparsity, asked.sparsity, absent=absent)
    masks = step(dense.eval(), [], asked.sparsity, pattern=None, block_size=32, saliency="magnitude")
    own: Any = compress(dense)
    tokens = torch.randint(1000, 20000, (asked.batch, asked.length))
    check(dense(tokens).logits, own(tokens).logits)
    files = _saved(own) / _saved(dense)
    if asked.attention is not None:
        sparsify(own, BlockTopK(asked.attention))
    pruned = [each for each in own.modules() if isinstance(each, BlockLinear)]
    dense_bytes = sum(4 * each.in_features * each.out_features for each in pruned)
    return Pruned(
        subject=name,
        size=size,
        pattern="blocks of 32",
        sparsity=masks.sparsity,
        target=asked.sparsity,
        layer_bytes=sum(each.blocks.nbytes + each.index.nbytes for each in pruned) / dense_bytes,
        model_bytes=files,
        timed=_timed({DENSE: lambda: dense(tokens), CRISP: lambda: own(tokens)}, effort),
    )


def check(dense: Tensor, own: Tensor) -> None:
    """Raise RuntimeError unless outputs agree but for the order of additions."""
    error = float((dense - own).abs().max() / dense.abs().max())
    if not error <= AGREEMENT:
        raise RuntimeError(
            f"compressed and dense outputs differ by {error:.1e} of the largest; at most {AGREEMENT}"
        )


def _timed(calls: Mapping[str, Callable[[], Any]], effort: Effort) -> list[Any]:
    for call in calls.values():
        warm_up(call)
    return compared(interleaved(calls, effort, clock_of("cpu")), DENSE)


def _bytes(module: nn.Module) -> int:
    return sum(each.nbytes for each in module.state_dict().values())


def _saved(model: PreTrainedModel) -> int:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(each.stat().st_size for each in Path(folder).glob("*.safetensors"))
