"""The settings of a sparse model as a plain, versioned dictionary, which is saved with the model."""

from collections.abc import Mapping
from typing import Any

from crisp_attention.methods.heads import LayerMethod, layer_method
from crisp_attention.models.settings import PHASES

VERSION = 1


class Unsavable(dict[str, Any]):
    """A record that cannot be saved: writing it as JSON raises ValueError with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(version=VERSION)
        self.reason = reason

    def items(self) -> Any:
        """Raise ValueError when it is written."""
        raise ValueError(f"this sparse model cannot be saved: {self.reason}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unsavable":
        return self

    def __reduce__(self) -> tuple[type["Unsavable"], tuple[str]]:
        return Unsavable, (self.reason,)


def record(methods: Mapping[str, LayerMethod], phase: str) -> dict[str, Any]:
    """Methods by layer name, and the phase, as `parse` reads them."""
    layers = {name: method.to_dict() for name, method in methods.items()}
    return {"version": VERSION, "phase": phase, "layers": layers}


def parse(data: Any, place: str) -> tuple[dict[str, LayerMethod], str]:
    """Methods by layer name, and the phase, from what `record` made; `place` is where it was found.

    Raises ValueError if it is of another version or damaged.
    """
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else data
        raise ValueError(f"{place} must be of version {VERSION}, found {found!r}")
    layers, phase = data.get("layers"), data.get("phase")
    if not isinstance(layers, dict) or not layers or phase not in PHASES:
        raise ValueError(f"{place} is damaged: layers {layers!r}, phase {phase!r}")
    return {name: layer_method(each) for name, each in layers.items()}, phase
