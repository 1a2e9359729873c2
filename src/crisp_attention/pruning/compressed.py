"""Layers that hold and compute the blocks of a pruned weight, and nothing of the others."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crisp_attention.kernels import triton_block_linear
from crisp_attention.kernels.cpu.block_linear import block_linear
from crisp_attention.kernels.dispatch import recorder, transformed
from crisp_attention.kernels.packing import packed, unpacked
from crisp_attention.methods.checks import check_whole
from crisp_attention.models.persistence import COMPRESSED
from crisp_attention.pruning.gelu import gelu_after
from crisp_attention.pruning.matrices import AS_ASKED, Matrix, matrices_of
from crisp_attention.pruning.patterns import BLOCK_SIZES, tiles_of

# what a weight costs in blocks of a size, as a share of its cost in a dense layer: measured at 512 rows, half of the
# blocks kept, on AVX-512. From 4 to 64 rows it is a little less; a single row waits for memory
COST = {8: 2.4, 16: 1.6, 32: 1.3, 64: 1.3}
# from 256 x 256 on, 128 rows take less time in blocks: in smaller layers the call itself takes as long as the product
LEAST_WEIGHTS = 2**16


# what torch calls around the forward and backward passes of a layer
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
LOG = logging.getLogger(__name__)


class BlockLinear(nn.Module):
    """A linear layer whose weight (outputs, inputs) is zero but for some square blocks, as many in every row of blocks.

    Without gradients only these blocks are computed: on CPUs in float32 and bfloat16 (computed in float32), and on
    NVIDIA's GPUs from Ampere on in float32 (without TF32), bfloat16 and float16, by a Triton kernel. Otherwise, under
    autocast, and in programs that are recorded (torch.export, ONNX), the weight is put together and used as that of any
    linear layer, with gradients for the blocks. Where each group of inputs has few weights, as with 2:4, a block holds
    these and where they are, and is put together for the product: bytes are saved, but no time.

    Parameters
    ----------
    blocks
        (R, K, B, B): the K blocks of each of R rows of blocks, each transposed, (inputs, outputs); or, with `places`,
        (R, K, lines, B): the weights of their groups of inputs.
    index
        (R, K) int32: the block of inputs that each is for.
    inputs
        The number of inputs.
    bias
        (R · B,), or None.
    gelu
        Whether GELU follows, the exact one.
    places
        (R, K, words, B) int32: where in its group each weight is, as `kernels.packing` says. None for whole blocks.
    group
        The number of inputs in a group, such as 4 for 2:4.

    Raises
    ------
    ValueError
        For sizes that do not fit together and an index beyond the inputs, also of a state dict that is loaded.

    Examples
    --------
    >>> import torch
    >>> from crisp_attention.pruning import BlockLinear
    >>> layer = BlockLinear(torch.ones(1, 1, 8, 8), torch.tensor([[1]], dtype=torch.int32), inputs=16, bias=None)
    >>> layer(torch.arange(16.0)[None])[0, 0]  # 8 + … + 15
    tensor(92., grad_fn=<SelectBackward0>)
    """

    LEFT = "compressed already: expected the model that it was made from"
    index: Tensor
    places: Tensor | None

    def __init__(
        self,
        blocks: Tensor,
        index: Tensor,
        inputs: int,
        bias: Tensor | None,
        gelu: bool = False,
        places: Tensor | None = None,
        group: int = 1,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, blocks.shape[0] * blocks.shape[3]
        self.gelu, self.group = gelu, group
        self.blocks = nn.Parameter(blocks)
        self.register_buffer("index", index)
        self.register_buffer("places", places)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.register_load_state_dict_post_hook(_check_loaded)
        self.check()

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit together, and for blocks of inputs that there are not."""
        rows, kept, _, size = self.blocks.shape
        if self.index.shape != (rows, kept) or self.in_features % size:
            raise ValueError(
                f"expected an index of {rows} x {kept} and inputs that {size} divides, got "
                f"{' x '.join(map(str, self.index.shape))} and {self.in_features}"
            )
        if type(self.index) is not Tensor or self.index.is_meta or not self.index.numel():
            return
        low, high = (int(each) for each in self.index.aminmax())
        if low < 0 or high >= self.in_features // size:
            raise ValueError(
                f"index must name the {self.in_features // size} blocks of {size} inputs, got {low} to {high}"
            )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, size: int, gelu: bool = False) -> "BlockLinear":
        """From a weight (outputs, inputs) that blocks of this size divide; rows with fewer blocks get some of zeros.

        Where every group of 4, 8 or 16 inputs has few weights, these are held alone.
        """
        tiles = tiles_of(weight.detach(), size)
        used = (tiles != 0).flatten(2).any(dim=2)
        count = max(int(used.sum(dim=1).max()), 1)
        # those that are used come first, in their order
        index = used.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        chosen = tiles.gather(1, index[:, :, None, None].expand(-1, -1, size, size))
        own = None if bias is None else bias.detach().clone()
        blocks = chosen.transpose(2, 3).contiguous()
        found, places, group = packed(blocks) or (blocks, None, 1)
        return cls(found, index.int(), weight.shape[1], own, gelu, places, group)

    @property
    def weight(self) -> Tensor:
        """The dense weight (outputs, inputs)."""
        rows, _, _, size = self.blocks.shape
        blocks = self.blocks if self.places is None else unpacked(self.blocks, self.places, self.group)
        tiles = blocks.new_zeros(rows, self.in_features // size, size, size)
        place = self.index.long()[:, :, None, None].expand(-1, -1, size, size)
        tiles = tiles.scatter(1, place, blocks.transpose(2, 3))
        return tiles.transpose(1, 2).flatten(2).flatten(0, 1)

    def forward(self, states: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs). Raises ValueError for another number of inputs."""
        if states.shape[-1] != self.in_features:
            raise ValueError(
                f"expected states of {self.in_features} inputs, got the shape {tuple(states.shape)}"
            )
        kernel, shape = kernel_for(states, self.blocks, self.bias), states.shape[:-1]
        if kernel is block_linear:
            return block_linear(
                states, self.blocks, self.index, self.bias, self.gelu, self.places, self.group
            )
        if kernel is None:
            found = functional.linear(states, self.weight, self.bias)
        else:
            states = states.reshape(-1, self.in_features)
            rows = kernel(states, self.blocks, self.index, self.bias, self.places, self.group)
            found = rows.reshape(*shape, self.out_features)
        return functional.gelu(found) if self.gelu else found

    @property
    def bytes(self) -> int:
        """Of all that is held."""
        return sum(each.nbytes for each in self.state_dict().values())

    @property
    def groups(self) -> list[int] | None:
        """How many weights are held of each group of so many inputs, as [2, 4]; None for whole blocks."""
        *_, lines, size = self.blocks.shape
        return None if self.places is None else [lines * self.group // size, self.group]

    @property
    def sizes(self) -> dict[str, Any]:
        """What a layer of the same shape is made from."""
        rows, kept, _, size = self.blocks.shape
        return {
            "rows": rows,
            "kept": kept,
            "size": size,
            "groups": self.groups,
            "inputs": self.in_features,
            "bias": self.bias is not None,
            "gelu": self.gelu,
        }

    def extra_repr(self) -> str:
        rows, kept, _, size = self.blocks.shape
        held = "" if self.groups is None else f", {self.groups[0]} of each {self.groups[1]} inputs in them"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{kept} of {self.in_features // size} blocks of {size} in each of {rows} rows{held}"
            + (", then GELU" if self.gelu else "")
        )


def _check_loaded(layer: Any, _: object) -> None:
    layer.check()


def kernel_for(states: Tensor, blocks: Tensor, bias: Tensor | None) -> Callable[..., Tensor] | None:
    """What multiplies by the blocks alone, None where nothing does."""
    learned = any(each is not None and each.requires_grad for each in (states, blocks, bias))
    if (learned and torch.is_grad_enabled()) or transformed() or recorder() is not None:
        return None
    if states.dtype != blocks.dtype:
        return None
    kernel: Callable[..., Tensor] | None = None
    if states.device.type == "cpu" and states.dtype in (torch.float32, torch.bfloat16):
        kernel = block_linear
    elif triton_block_linear.computes(states):
        kernel = triton_block_linear.block_linear
    return None if kernel is None or torch.is_autocast_enabled(states.device.type) else kernel


def compress(model: nn.Module, *, skip: Sequence[str] = (), least_weights: int = LEAST_WEIGHTS) -> nn.Module:
    """A copy of a model in which linear layers with enough blocks of zeros skip them; the model stays as it is.

    The size of blocks is found for each layer, heads too, whoever made the zeros. Where it can be told that GELU
    follows a layer, the layer computes it too. Outputs are the same but for rounding. Convolutions, and layers that
    would not be faster by times measured on a CPU, stay dense; the latter are named in a log of level INFO. Zeros
    within blocks, such as those of 2:4 or 4:8, save bytes, but no time. Layers that share a weight share its blocks.
    Hooks are kept.

    `save_pretrained` of a transformers model saves the blocks alone; `crisp.load` brings them back, and so does
    transformers where Crisp is imported.

    Parameters
    ----------
    model
        A pruned model.
    skip
        Patterns of names of layers that stay dense.
    least_weights
        Layers of fewer weights, zeros included, stay dense: they would take longer. 0 saves bytes wherever there are
        zeros to leave out, also where that takes longer.

    Returns
    -------
    nn.Module
        Of the same class, with `BlockLinear` for some of its layers.

    Raises
    ------
    ValueError
        If no layer has enough zeros in blocks, for a model whose layers are all compressed already, and for weights
        that torch computes from others, as its own pruning does.

    Examples
    --------
    >>> import torch
    >>> from crisp_attention import pruning
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    >>> masks = pruning.step(model, [], 0.75, pattern=None, block_size=16, saliency="magnitude")
    >>> pruning.compress(model, least_weights=0)[0]
    BlockLinear(in_features=64, out_features=64, bias=True, 1 of 4 blocks of 16 in each of 4 rows)
    """
    if isinstance(model, nn.Linear):
        raise ValueError("compress takes a model with layers, got a layer: expected it inside another module")
    check_whole("least_weights", least_weights, 0)
    every = matrices_of(model, skip, heads=True)
    sizes = {each.name: size_for(each, least_weights) for each in every.matrices}
    if not any(sizes.values()):
        left = {BlockLinear.LEFT} & set(every.skipped.values())
        raise ValueError(
            f"{type(model).__name__} has no layer that blocks would make faster: expected layers of at least "
            f"{least_weights:,} weights (least_weights) with whole blocks of zeros, of "
            f"{', '.join(map(str, BLOCK_SIZES))} rows and columns"
            + "".join(f"; some are {each}" for each in left)
        )
    dense = [name for name, size in sizes.items() if size is None]
    if dense:
        LOG.info("these stay dense, which takes less time: %s", ", ".join(dense))
    found = copy.deepcopy(model)
    chosen = {id(found.get_submodule(name).weight): size for name, size in sizes.items() if size is not None}
    asked = {name for name, reason in every.skipped.items() if reason == AS_ASKED}
    parts: dict[int, Any] = {}  # of those that share them, by the first one's
    for module, names in _names(found).items():
        if (size := chosen.get(id(getattr(module, "weight", None)))) is None or asked & set(names):
            continue
        matrix = Matrix(names[0], module)
        gelu = gelu_after(found, names[0]) if len(names) == 1 and not _has_hooks(module) else None
        if gelu is not None and _has_hooks(found.get_submodule(gelu)):
            gelu = None
        layer = BlockLinear.of(matrix.rows(matrix.weight), matrix.bias, size, gelu is not None)
        layer.blocks.requires_grad_(matrix.weight.requires_grad)
        first = parts.setdefault(id(matrix.weight), layer)
        layer.blocks, layer.index, layer.places = first.blocks, first.index, first.places
        if matrix.bias is not None and layer.bias is not None:
            layer.bias.requires_grad_(matrix.bias.requires_grad)
            layer.bias = parts.setdefault(id(matrix.bias), layer.bias)
        for hooks in HOOKS:
            setattr(layer, hooks, getattr(module, hooks))
        for name in names:
            put(found, name, layer.train(module.training), gelu)
    note(found)
    return found


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All names of each layer, several of one that a model has in several places."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in HOOKS)


def put(model: nn.Module, name: str, layer: BlockLinear, gelu: str | None) -> None:
    """Put a layer in the place of the one with a name, and nothing in that of the GELU that it computes, if any."""
    model.set_submodule(name, layer)
    if gelu is not None:
        model.set_submodule(gelu, nn.Identity())


def note(model: nn.Module) -> None:
    """Write into the config of a transformers model which of its layers are compressed, as `saved` reads it."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_diff_dict"):
        layers = {name: each.sizes for name, each in model.named_modules() if isinstance(each, BlockLinear)}
        config.quantization_config = {"quant_method": COMPRESSED, "layers": layers}


def size_for(matrix: Matrix, least_weights: int = LEAST_WEIGHTS) -> int | None:
    """The size of blocks by which a matrix takes least time, None if dense does; for 0 weights, or least bytes."""
    if matrix.weight.dim() != 2 or matrix.weight.numel() < least_weights:
        return None
    sizes = [size for size in BLOCK_SIZES if not any(each % size for each in matrix.shape)]
    rows = matrix.rows(matrix.weight.detach())
    best, least = None, 1.0
    for size in sizes:
        used = (tiles_of(rows, size) != 0).flatten(2).any(dim=2)
        cost = COST[size] * max(int(used.sum(dim=1).max()), 1) / used.shape[1]
        if cost <= least and cost < 1:
            best, least = size, cost
    if best is None and least_weights == 0:
        held = {size: BlockLinear.of(rows, None, size).bytes for size in sizes}
        fewest = min(held, key=held.__getitem__, default=None)
        best = fewest if fewest is not None and held[fewest] < rows.nbytes else None
    return best
