"""`crisp.profile(model, dataloader)`: one pass of the dense model over a sample."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crisp_attention.insight.profile.profile import Profile
from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.apply import outermost
from crisp_attention.models.observing import observing
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

    root = outermost(model)
    with observing(model, observe) as layers, _without_methods(layers), evaluating(model), torch.no_grad():
        for batch in dataloader:
            model(**_arguments(batch, root))
    if not found.sums:
        raise ValueError("nothing was profiled: the dataloader gave no batch, or no attention ran")
    return found


@contextmanager
def _without_methods(layers: Sequence[Settings]) -> Iterator[None]:
    methods = [settings.method for settings in layers]
    for settings in layers:
        settings.method = None
    try:
        yield
    finally:
        for settings, method in zip(layers, methods, strict=True):
            settings.method = method


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _arguments(batch: Any, root: PreTrainedModel) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"expected batches that are mappings of the model's arguments, got {type(batch).__name__}"
        )
    # no loss is wanted, but an encoder-decoder may make its decoder's input from the labels
    drops = not root.config.is_encoder_decoder or "labels" not in inspect.signature(root.forward).parameters
    return {
        name: value.to(root.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if not (drops and name == "labels")
    }
