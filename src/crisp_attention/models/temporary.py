"""Another method for a while: afterwards the model is what it was, what it has learned included."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from crisp_attention.methods import AnyMethod
from crisp_attention.models.apply import activate, densify, sparsify
from crisp_attention.models.learned import MODULE
from crisp_attention.models.settings import settings_of


@contextmanager
def having(root: PreTrainedModel, method: AnyMethod) -> Iterator[None]:
    """Inside the block `root`, sparse or not, has `method` in its self-attention and nothing else.

    Raises TypeError or ValueError, as `sparsify` does, if the method does not fit the model.
    """
    before = settings_of(root)
    learned = [(layer.module, getattr(layer.module, MODULE, None)) for layer, _ in before]
    try:
        sparsify(root, method)
        yield
    finally:
        if before:
            methods = {each.index: each.method for _, each in before if each.method is not None}
            activate(root, methods, before[0][1].phase, before[0][1].backend)
            for module, parameters in learned:
                if parameters is not None:
                    module.add_module(MODULE, parameters)
        elif settings_of(root):
            densify(root)
