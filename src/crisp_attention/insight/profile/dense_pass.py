"""`crisp.profile(model, dataloader)`: one pass of the dense model over a sample."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from crisp_attention.insight.profile.profile import Profile
from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.borrowing import borrowed
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

    Runs the model dense, a sparse one too, in evaluation mode on every batch, a mapping of arguments
    of its forward; then the model is what it was. The sparsities are 0, 0.025 … 0.975 and those
    given; `block_size` is that of the blocks of keys. Raises TypeError or ValueError for batches or
    models that it cannot use.
    """
    found = Profile(Targets.of(block_size, sparsities))

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        found.observe(settings.index, settings.name, seen, cross=settings.cross)

    host, root = host_of(model)
    with borrowed(model, observe=observe, dense=True, evaluate=True):
        for batch in dataloader:
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"expected batches that are mappings of the model's arguments, got {type(batch).__name__}"
                )
            model(**host.inputs(root, batch))
    if not found.sums:
        raise ValueError("nothing was profiled: the dataloader gave no batch, or no attention ran")
    return found
