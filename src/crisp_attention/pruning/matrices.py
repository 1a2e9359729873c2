"""The weights of layers as matrices, with a row for every output."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn.utils import parametrize

KINDS = ("attention", "feed-forward", "convolution")
ATTENTION = re.compile(
    r"att(n|ention)|(^|\.)([qkvo]|to_[qkv]|[qkvo]_proj|query|key|value)(\.|$)", re.IGNORECASE
)
AS_ASKED = "as asked for"  # why a layer is left
# what maps features to classes, words or images: part of a name between dots
HEADS = frozenset(
    [
        "classifier",
        "pre_classifier",
        "pooler",
        "classification_head",
        "cls_classifier",
        "distillation_classifier",
        "logits_proj",
        "projector",
        "sequence_summary",
        "score",
        "lm_head",
        "cls",
        "qa_outputs",
        "head",
        "heads",
        "embed_out",
    ]
)

_KNOWN = "a linear layer, a 2-d convolution or a Conv1D of transformers"


@dataclass(frozen=True, eq=False)
class Matrix:
    """The weight of one layer, as a matrix (outputs, inputs) whose neighbouring inputs are channels of one position.

    Those of `nn.Linear` are as they are, those of transformers' `Conv1D` transposed; those of `nn.Conv2d`
    (C_out, C_in, h, w) are (C_out, h · w · C_in), so that a group of inputs lies within one position of the kernel.
    """

    name: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """One of `KINDS`: a convolution, part of an attention by its name, or else feed-forward."""
        if isinstance(self.module, nn.Conv2d):
            return "convolution"
        return "attention" if ATTENTION.search(self.name) else "feed-forward"

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """That of the layer, if it has one."""
        bias = self.module.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    @property
    def channels(self) -> int:
        """How many neighbouring inputs belong together."""
        return self.weight.shape[0 if self._is_transposed else 1]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs = self.weight.shape[1 if self._is_transposed else 0]
        return outputs, self.weight.numel() // max(outputs, 1)

    def rows(self, values: Tensor) -> Tensor:
        """Values laid out like the weight, as the matrix."""
        if self._is_transposed:
            return values.T
        return values if values.dim() == 2 else values.movedim(1, -1).flatten(1)

    def back(self, rows: Tensor) -> Tensor:
        """A matrix laid out like the weight, contiguous."""
        weight = self.weight
        if self._is_transposed:
            return rows.T.contiguous()
        if weight.dim() == 2:
            return rows.contiguous()
        outputs, channels, *kernel = weight.shape
        return rows.reshape(outputs, *kernel, channels).movedim(-1, 1).contiguous()

    @property
    def _is_transposed(self) -> bool:
        return _is_conv1d(self.module)


@dataclass(frozen=True)
class Found:
    """The matrices of a model that can be pruned, and the layers that are left, each with the reason."""

    matrices: list[Matrix]
    skipped: dict[str, str]


def matrices_of(model: nn.Module, skip: Sequence[str] = (), heads: bool = False) -> Found:
    """All weights of linear layers and convolutions, in the order of the model, each once.

    Left out are heads (in models of transformers all that is outside their base model) unless asked for, the first
    convolution, weights that are an embedding's too, matrices that are no such layer's weight, and what matches a
    pattern of `skip`, such as "*.layer.0.*". Raises ValueError for a pattern that matches no layer, for PEFT adapters,
    and for layers that torch's own pruning or a parametrization computes the weight of.
    """
    if isinstance(skip, str):
        raise ValueError(f"skip must be a sequence of patterns, got {skip!r}: expected [{skip!r}]")
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"expected a torch module, got a {type(model).__name__}"
            + " (its `model`?)" * hasattr(model, "model")
        )
    if any(type(each).__module__.startswith("peft.") for each in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has PEFT adapters, and zeros do not survive merging them: expected a model after "
            f"merge_and_unload()"
        )
    for name, each in model.named_modules():
        if _is_layer(each) and (remedy := _computed(each)):
            raise ValueError(f"the weight of {name} is computed from others: expected a model after {remedy}")
    layers = {name: each for name, each in model.named_modules() if _is_prunable(each)}
    body = _body(model)
    for pattern in skip:
        if not any(fnmatch(name, pattern) for name in layers):
            raise ValueError(f"skip: {pattern!r} matches none of the {len(layers)} layers with weights")
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    first = next((name for name, each in layers.items() if isinstance(each, nn.Conv2d)), None)
    found, skipped, seen = [], {}, set[int]()
    for name, module in layers.items():
        matrix = Matrix(name, module)
        if any(fnmatch(name, pattern) for pattern in skip):
            skipped[name] = AS_ASKED
        elif id(matrix.weight) in embeddings:
            skipped[name] = "its weight is that of an embedding"
        elif not heads and (HEADS & set(name.split(".")) or not name.startswith(body)):
            skipped[name] = "a head"
        elif name == first:
            skipped[name] = "the first convolution"
        elif id(matrix.weight) in seen:
            skipped[name] = "its weight is that of an earlier layer"
        else:
            found.append(matrix)
            seen.add(id(matrix.weight))
    return Found(found, skipped | _others(model, layers))


def _others(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Matrices that are not weights of such layers, as those of XLNet's attention and of many experts are not."""
    return {
        f"{name}.{own}".lstrip("."): getattr(type(module), "LEFT", f"no weight of {_KNOWN}")
        for name, module in model.named_modules()
        if name not in layers and not isinstance(module, nn.Embedding)
        for own, each in module.named_parameters(recurse=False)
        if each.dim() > 1 and min(each.shape[-2:]) > 1
    }


def _body(model: nn.Module) -> str:
    """What the names of all layers but heads begin with; empty where that is not known."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or base is model:
        return ""
    return next((f"{name}." for name, each in model.named_modules() if each is base), "")


def _is_prunable(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return _is_layer(module) and isinstance(weight, nn.Parameter) and weight.is_floating_point()


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) or _is_conv1d(module)


def _computed(module: nn.Module) -> str | None:
    """What makes the weight of a layer its parameter again, where torch computes it from others."""
    if hasattr(module, "weight_orig"):
        return "torch.nn.utils.prune.remove(layer, 'weight'), or remove_spectral_norm(layer)"
    if parametrize.is_parametrized(module, "weight"):
        return "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
    return None


def _is_conv1d(module: nn.Module) -> bool:
    utilities = sys.modules.get("transformers.pytorch_utils")
    return utilities is not None and isinstance(module, utilities.Conv1D)
