"""Layers that hold and compute the blocks of a pruned weight, and nothing of the others."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crisp_attention.kernels import triton_block_linear
from crisp_attention.kernels.cpu.block_linear import block_linear
from crisp_attention.kernels.dispatch import recorder, transformed
from crisp_attention.kernels.packing import packed, unpacked
from crisp_attention.models.persistence import COMPRESSED
from crisp_attention.pruning.gelu import gelu_after
from crisp_attention.pruning.matrices import Matrix, matrices_of
from crisp_attention.pruning.patterns import BLOCK_SIZES, tiles_of

# what a weight costs in blocks of a size, as a share of its cost in a dense layer: measured at 512 rows, half of the
# blocks kept, on AVX-512. From 4 to 64 rows it is a little less; a single row waits for memory
COST = {8: 2.4, 16: 1.6, 32: 1.3, 64: 1.3}
# from 256 x 256 on, 128 rows take less time in blocks: in smaller layers the call itself takes as long as the product
LEAST_WEIGHTS = 2**16


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

    Examples
    --------
    >>> import torch
    >>> from crisp_attention.pruning import BlockLinear
    >>> layer = BlockLinear(torch.ones(1, 1, 8, 8), torch.tensor([[1]], dtype=torch.int32), inputs=16, bias=None)
    >>> layer(torch.arange(16.0)[None])[0, 0]  # 8 + … + 15
    tensor(92., grad_fn=<SelectBackward0>)
    """

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
        """(…, inputs) to (…, outputs)."""
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

    The size of blocks is found for each layer, whoever made the zeros. Where it can be told that GELU follows a layer,
    the layer computes it too. Outputs are the same but for rounding. Convolutions, and layers that would not be faster
    by times measured on a CPU, stay dense. Zeros within blocks, such as those of 2:4 or 4:8, save bytes, but no time.

    `save_pretrained` of a transformers model saves the blocks alone; `crisp.load` brings them back, and so does
    transformers where Crisp is imported.

    Parameters
    ----------
    model
        A pruned model.
    skip
        Patterns of names of layers that stay dense.
    least_weights
        Layers of fewer weights, zeros included, stay dense: they would take longer. 0 saves their bytes all the same.

    Returns
    -------
    nn.Module
        Of the same class, with `BlockLinear` for some of its layers.

    Raises
    ------
    ValueError
        If no layer has enough zeros in blocks.

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
    sizes = {
        each.name: size
        for each in matrices_of(model, skip).matrices
        if (size := size_for(each, least_weights))
    }
    if not sizes:
        raise ValueError(
            f"{type(model).__name__} has no layer that blocks would make faster: expected layers of at least "
            f"{least_weights:,} weights (least_weights) with whole blocks of zeros, of "
            f"{', '.join(map(str, BLOCK_SIZES))} rows and columns"
        )
    found = copy.deepcopy(model)
    for name, size in sizes.items():
        matrix = Matrix(name, found.get_submodule(name))
        gelu = gelu_after(found, name)
        layer = BlockLinear.of(matrix.rows(matrix.weight), matrix.bias, size, gelu is not None)
        layer.requires_grad_(matrix.weight.requires_grad).train(matrix.module.training)
        put(found, name, layer, gelu)
    note(found)
    return found


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
    """The size of blocks by which a matrix takes least time, None if dense does."""
    if matrix.weight.dim() != 2 or matrix.weight.numel() < least_weights:
        return None
    best, least = None, 1.0
    for size in BLOCK_SIZES:
        if any(each % size for each in matrix.shape):
            continue
        used = (tiles_of(matrix.rows(matrix.weight.detach()), size) != 0).flatten(2).any(dim=2)
        cost = COST[size] * max(int(used.sum(dim=1).max()), 1) / used.shape[1]
        if cost <= least and cost < 1:
            best, least = size, cost
    return best
