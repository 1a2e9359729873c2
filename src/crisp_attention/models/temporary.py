"""Another method for a while: afterwards the model is what it was, what it has learned included."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from crisp_attention.methods.method import AnyMethod
from crisp_attention.models.apply import activate, supported_layers
from crisp_attention.models.rollback import remember
from crisp_attention.models.selection import select


@contextmanager
def having(root: PreTrainedModel, method: AnyMethod) -> Iterator[None]:
    """Inside the block `root`, sparse or not, has `method` in its self-attention and nothing else.

    Raises TypeError or ValueError, as `sparsify` does, if the method does not fit the model.
    """
    chosen = select(supported_layers(root), method, None, "self")
    put_back = remember(root)
    try:
        activate(root, chosen, "always")
        yield
    finally:
        put_back()
