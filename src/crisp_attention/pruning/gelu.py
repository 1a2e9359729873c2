"""Where GELU follows a linear layer and nothing else sees what lies between, so that one kernel computes both."""

import sys

from torch import nn

# in the modules of transformers that have these two children and no others, the one is called with the other's output
LAYER, ACTIVATION = "dense", "intermediate_act_fn"


def gelu_after(model: nn.Module, name: str) -> str | None:
    """The name of the GELU that gets what a layer returns; None if there is none, or that cannot be told.

    It is told of the next module in an `nn.Sequential` and of transformers' `BertIntermediate` and its likes.
    """
    parent, _, own = name.rpartition(".")
    module = model.get_submodule(parent)
    children = list(module._modules)
    if type(module) is nn.Sequential:
        following = children[children.index(own) + 1 :][:1]
    elif type(module).__module__.startswith("transformers.") and set(children) == {LAYER, ACTIVATION}:
        following = [ACTIVATION] if own == LAYER else []
    else:
        following = []
    if not any(_is_gelu(module._modules[each]) for each in following):
        return None
    return ".".join([*([parent] if parent else []), *following])


def _is_gelu(module: nn.Module | None) -> bool:
    """Whether it is the exact one; others approximate it by tanh or a sigmoid."""
    if type(module) is nn.GELU:
        return module.approximate == "none"
    activations = sys.modules.get("transformers.activations")
    return activations is not None and type(module) is activations.GELUActivation
