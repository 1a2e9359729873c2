"""`crisp.measuring(model)`: what the sparse model really does while the block runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from crisp_attention.insight.measure import Measurement
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.models.observing import observing
from crisp_attention.models.settings import Settings


@contextmanager
def measuring(model: nn.Module) -> Iterator[Measurement]:
    """Measure every attention call of a model inside the block, per layer and head.

    Yields a `Measurement`; its `table()` works during and after the block. Layers that are dense,
    or not in their phase, appear as `dense`; a model that is not sparse is measured dense. Calls from other
    threads count too; a model that is not sparse should run in none while its block begins or ends. Costs
    nothing when not active. Raises ValueError for a model that Crisp cannot look into.
    """
    measurement = Measurement()

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        names = [m.name for m in method.methods] if isinstance(method, PerHead) else method.name
        measurement.observe(settings.index, settings.name, names, seen)

    with observing(model, observe):
        yield measurement
