"""The settings as a plain, versioned dictionary in the model's config, which travels with every save."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from crisp_attention.methods.heads import LayerMethod, layer_method
from crisp_attention.models.configs import config_of
from crisp_attention.models.notice import CONFIG_KEY, restoring
from crisp_attention.models.settings import PHASES, settings_of

VERSION = 1


class Unsavable(dict[str, Any]):
    """Settings that cannot be saved, in a config: writing it raises ValueError with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(version=VERSION)
        self.reason = reason

    def items(self) -> Any:
        """What writers ask for. Raises ValueError."""
        raise ValueError(f"this sparse model cannot be saved: {self.reason}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unsavable":
        return self

    def __reduce__(self) -> tuple[type["Unsavable"], tuple[str]]:
        return Unsavable, (self.reason,)


def write(model: PreTrainedModel) -> None:
    """Put the settings of a sparse model into its config, and into that of no part of it.

    Those of a class without a name can be used, but not saved.
    """
    for module in model.modules():
        if (config := config_of(module)) is not None:
            erase(config)
    try:
        settings = settings_as_dict(model)
    except ValueError as error:
        settings = Unsavable(str(error))
    with restoring():
        setattr(model.config, CONFIG_KEY, settings)


def settings_as_dict(model: PreTrainedModel) -> dict[str, Any]:
    """The settings of a sparse model, its layers by the names that they have now; `parse` reads them."""
    sparse = [(layer.name, each) for layer, each in settings_of(model) if each.method is not None]
    return {
        "version": VERSION,
        "phase": sparse[0][1].phase,
        "layers": {name: each.method.to_dict() for name, each in sparse if each.method},
    }


def erase(config: PreTrainedConfig) -> None:
    """Remove the settings from a config, if it has any."""
    if hasattr(config, CONFIG_KEY):
        delattr(config, CONFIG_KEY)


def read(config: PreTrainedConfig) -> tuple[dict[str, LayerMethod], str] | None:
    """Methods by layer name, and the phase; None if the config holds no settings.

    Raises ValueError if they are of another version or damaged.
    """
    data: Any = getattr(config, CONFIG_KEY, None)
    return None if data is None else parse(data, f"config.{CONFIG_KEY}")


def parse(data: Any, place: str) -> tuple[dict[str, LayerMethod], str]:
    """Methods by layer name, and the phase, from what `write` wrote; `place` is where it was found.

    Raises ValueError if it is of another version or damaged.
    """
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else data
        raise ValueError(f"{place} must be of version {VERSION}, found {found!r}")
    layers, phase = data.get("layers"), data.get("phase")
    if not isinstance(layers, dict) or not layers or phase not in PHASES:
        raise ValueError(f"{place} is damaged: layers {layers!r}, phase {phase!r}")
    return {name: layer_method(each) for name, each in layers.items()}, phase
