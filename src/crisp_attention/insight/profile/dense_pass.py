"""`crisp.profile(model, dataloader)`: one pass of the dense model over a sample."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from crisp_attention.insight.profile.profile import Profile
from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.borrowing import borrowed, inputs
from crisp_attention.models.host import host_of
from crisp_attention.models.settings import Settings


def profile(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    block_size: int = 16,
    sparsities: Sequence[float] = (),
) -> Profile:
    """Find out where sparsity is safe: what every head keeps of its dense attention at every sparsity.

    Runs the model dense, a sparse one too, in evaluation mode; afterwards the model is restored.

    Parameters
    ----------
    model
        A model that Crisp can make sparse.
    dataloader
        Batches: mappings of the arguments of the model's forward.
    block_size
        Keys in a block, for `BlockTopK`.
    sparsities
        Target sparsities in addition to 0, 0.025 … 0.975.

    Returns
    -------
    Curves of kept mass for every layer and head, and the budgets that follow.

    Raises
    ------
    TypeError, ValueError
        For batches or models that it cannot use.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> profile = crisp.profile(model, [{"input_ids": torch.arange(16)[None]}], block_size=4)
    >>> profile.table()["rows"].tolist()  # one for each head
    [16, 16]
    """
    found = Profile(Targets.of(block_size, sparsities))

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        found.observe(settings.index, settings.name, seen, cross=settings.cross)

    host, root = host_of(model)
    with borrowed(model, observe=observe, dense=True, evaluate=True):
        for batch in dataloader:
            model(**inputs(host, root, batch))
    if not found.sums:
        raise ValueError("nothing was profiled: the dataloader has no batch, or no attention ran")
    return found
