"""A sparse model has configurations of its own: the objects it came with may be shared with others."""

from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# On the outermost model: pairs (own copy, original). The objects themselves, so that a deep copy or
# a pickle of the model keeps the two together.
ORIGINALS = "_crisp_originals"


def config_of(module: nn.Module) -> PreTrainedConfig | None:
    """The transformers configuration that a module holds, if any."""
    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def take_configs(root: PreTrainedModel) -> None:
    """Give the modules of `root` copies of their configurations, shared among them as before."""
    copies: dict[int, Any] = {}
    pairs: dict[int, tuple[PreTrainedConfig, PreTrainedConfig]] = {}
    for module in root.modules():
        if (original := config_of(module)) is not None:
            own = deepcopy(original, copies)
            pairs[id(own)] = (own, original)
            module.config = own  # type: ignore[assignment]
    setattr(root, ORIGINALS, list(pairs.values()))


def give_back_configs(root: PreTrainedModel) -> None:
    """Undo `take_configs`."""
    originals = {id(own): original for own, original in getattr(root, ORIGINALS)}
    for module in root.modules():
        if (own := config_of(module)) is not None:
            module.config = originals.get(id(own), own)
    delattr(root, ORIGINALS)


def original_implementation(root: PreTrainedModel, module: nn.Module) -> str:
    """The attention implementation that a module had before its model became sparse."""
    originals = {id(own): original for own, original in getattr(root, ORIGINALS)}
    return originals[id(config_of(module))]._attn_implementation
