"""A sparse model has configurations of its own: the objects it came with may be shared with others."""

from copy import deepcopy
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.host import CRISP
from crisp_attention.models.record import parse
from crisp_attention.models.transformers.config_notice import CONFIG_KEY

# a model's own copies of its configurations, each with the original
Copies = list[tuple[PreTrainedConfig, PreTrainedConfig]]


def config_of(module: nn.Module) -> PreTrainedConfig | None:
    """The transformers configuration that a module holds, if any."""
    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def replace_by_copies(root: nn.Module) -> Copies:
    """Give the modules of `root` copies of their configurations, shared among them as before."""
    copies: dict[int, Any] = {}
    pairs: dict[int, tuple[PreTrainedConfig, PreTrainedConfig]] = {}
    for module in root.modules():
        if (original := config_of(module)) is not None:
            own = deepcopy(original, copies)
            pairs[id(own)] = (own, original)
            module.config = own  # type: ignore[assignment]
    return list(pairs.values())


def give_back_originals(root: nn.Module, copies: Copies) -> None:
    """Undo `replace_by_copies`."""
    originals = {id(own): original for own, original in copies}
    for module in root.modules():
        if (own := config_of(module)) is not None:
            module.config = originals.get(id(own), own)  # type: ignore[assignment]


def original_implementation(root: PreTrainedModel, module: nn.Module, copies: Copies) -> str:
    """The attention implementation that a module had before its model became sparse."""
    originals = {id(own): original for own, original in copies}
    own = cast(PreTrainedConfig, config_of(module))
    found = originals.get(id(own), own)._attn_implementation
    return root.get_correct_attn_implementation(None) if found == CRISP else found


def recorded(config: PreTrainedConfig) -> tuple[dict[str, LayerMethod], str] | None:
    """Methods by layer name, and the phase, of a configuration; None if it holds no settings.

    Raises ValueError if they are of another version or damaged.
    """
    settings = getattr(config, CONFIG_KEY, None)
    return None if settings is None else parse(settings, f"config.{CONFIG_KEY}")


def erase_records(root: nn.Module) -> None:
    """Remove the records of settings from the configurations of a model and its parts."""
    for module in root.modules():
        if (config := config_of(module)) is not None and hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)


def forget_sparsity(root: PreTrainedModel) -> None:
    """Configurations of a dense model that say it is sparse, as they came from one, say so no longer."""
    configs = [config for module in root.modules() if (config := config_of(module)) is not None]
    if any(each._attn_implementation == CRISP or hasattr(each, CONFIG_KEY) for each in configs):
        for own, _ in replace_by_copies(root):  # the objects themselves may be another model's
            _forget(own, root.get_correct_attn_implementation(None))


def check_savable(root: PreTrainedModel) -> None:
    """Raise ValueError if transformers would save `root` with eager attention, but not with Crisp's."""
    if _refusal(root.config, "eager") is not None or (reason := _refusal(root.config, CRISP)) is None:
        return
    if root.config.output_attentions:
        reason = (
            "its config has output_attentions=True, which transformers accepts with eager attention only; set "
            "model.config.output_attentions = False (or load it with output_attentions=False) and call the model with "
            "output_attentions=True to get its attention weights"
        )
    raise ValueError(f"{type(root).__name__} could not be saved once it is sparse: {reason}")


def _refusal(config: PreTrainedConfig, implementation: str) -> str | None:
    """What transformers, which checks a configuration when it saves it, finds wrong under an implementation."""
    asked = deepcopy(config)
    asked._attn_implementation = implementation
    validate = getattr(asked, "validate", None)  # not every configuration has it
    try:
        if validate is not None:
            validate()
    except StrictDataclassError as error:
        return str(error)
    return None


def _forget(config: PreTrainedConfig, implementation: str) -> None:
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            _forget(part, implementation)
    if config._attn_implementation == CRISP:
        config._attn_implementation = {"": implementation}  # of this one, not of its parts
    if hasattr(config, CONFIG_KEY):
        delattr(config, CONFIG_KEY)
