"""PEFT's adapters on a model, and the settings that lie in an adapter's configuration.

They are an entry of its `auto_mapping`, the one field of every adapter configuration that holds a
dictionary, says what an adapter needs of its base model, and is read back by a PEFT without Crisp.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Parameter
from crisp_attention.models.host import AttentionLayer, Missing
from crisp_attention.models.parameters import MODULE, Parameters, Values, current
from crisp_attention.models.record import parse
from crisp_attention.models.selection import by_name
from crisp_attention.models.transformers.config_notice import CONFIG_KEY


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model: PEFT's configurations by name, and the name of the one in use, if any."""

    configs: Mapping[str, Any]
    active: str | None

    @property
    def recorded(self) -> tuple[dict[str, LayerMethod], str] | None:
        """What the adapter in use was saved with: methods by layer name, and the phase; None if without.

        Raises ValueError if it is of another version or damaged.
        """
        return recorded_in(self.configs[self.active]) if self.active else None

    def train(self, layers: Iterable[AttentionLayer], *, listed: bool = False) -> None:
        """Let every adapter have parameters of its own for what these layers learn.

        They are then trained, saved, loaded, switched and merged with it, as PEFT does for what a configuration
        names in `modules_to_save`; with `listed`, only for adapters whose configuration names them.
        """
        names = [n for n, config in self.configs.items() if not listed or MODULE in saved_modules(config)]
        if not names:
            return
        from peft.utils import ModulesToSaveWrapper

        active = self.active if self.active in names else None
        frozen = active is not None and self.configs[active].inference_mode
        for layer in layers:
            own = getattr(layer.module, MODULE)
            if not isinstance(own, ModulesToSaveWrapper):
                own = ModulesToSaveWrapper(own, names[0])
                layer.module.add_module(MODULE, own)
            for name in names:
                own.update(name)
            own.set_adapter([] if active is None else active, inference_mode=frozen)

    def learned(
        self, missing: Sequence[Missing], found: Sequence[AttentionLayer]
    ) -> Iterator[tuple[AttentionLayer, str, Values]]:
        """What layers have learned along with each adapter, as it was saved with the adapter; that in use comes last.

        Raises ValueError if the adapter in use was not saved with all of it.
        """
        missing = list(missing)
        for name in sorted(self.configs, key=lambda name: name == self.active):
            settings = settings_in(self.configs[name]) or {}
            saved = {
                by_name(found, each).name: values for each, values in settings.get("learned", {}).items()
            }
            for layer, wanted in missing:
                values = {_now(n): torch.tensor(value) for n, value in saved.get(layer.name, {}).items()}
                if all(_fits(values.get(n), each) for n, each in wanted.items()):
                    yield layer, name, values
                elif name == self.active:
                    raise ValueError(
                        f"the configuration of adapter {name!r} does not hold what {layer.name} learned: expected "
                        f"{', '.join(wanted)} in auto_mapping.{CONFIG_KEY}.learned, found {sorted(saved)}"
                    )


def _now(name: str) -> str:
    return current(f"{MODULE}.{name}").removeprefix(f"{MODULE}.")


def _fits(value: torch.Tensor | None, wanted: Parameter) -> bool:
    return value.shape == wanted.value.shape if value is not None else not wanted.trained


def adapters_on(model: nn.Module, root: nn.Module) -> Adapters:
    """The adapters on `root`, the transformers model in `model`, where PEFT has put any."""
    configs = getattr(model, "peft_config", None) or getattr(root, "peft_config", None)
    if not isinstance(configs, Mapping) or not configs:
        return Adapters({}, None)
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module.active_adapters for module in root.modules() if isinstance(module, BaseTunerLayer))
    active = next(layers, None)
    if active is None:  # a learned prompt is on the wrapper, not in the layers
        active = getattr(model, "active_adapters", [])
    return Adapters(configs, next((name for name in active if name in configs), None))


def settings_in(config: Any) -> dict[str, Any] | None:
    """The settings in an adapter's configuration."""
    return (config.auto_mapping or {}).get(CONFIG_KEY)


def recorded_in(config: Any) -> tuple[dict[str, LayerMethod], str] | None:
    """Methods by layer name, and the phase, of the settings in an adapter's configuration, if it holds any.

    Raises ValueError if they are of another version or damaged.
    """
    settings = settings_in(config)
    return None if settings is None else parse(settings, f"the adapter's auto_mapping.{CONFIG_KEY}")


def recorded_at(folder: Path) -> tuple[dict[str, LayerMethod], str] | None:
    """Methods by layer name, and the phase, of a checkpoint's model or of the adapters in it, which are saved together.

    None if it was saved dense. Raises ValueError if the settings are of another version or damaged.
    """
    named = sorted(folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))  # all adapters but "default" have subfolders
    for file in (folder / CONFIG_NAME, folder / ADAPTER_CONFIG_NAME, *named):
        saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        holder = saved if file.name == CONFIG_NAME else saved.get("auto_mapping") or {}
        if (settings := holder.get(CONFIG_KEY)) is not None:
            return parse(settings, f"{CONFIG_KEY} in {file}")
    return None


def own_parameters(module: nn.Module, adapter: str | None = None) -> Parameters:
    """The parameters of an attention module that one adapter uses: its own, or those of the base model."""
    parameters = getattr(module, MODULE)
    by_adapter = getattr(parameters, "modules_to_save", None)  # PEFT's wrapper holds a copy for each adapter
    if by_adapter is None:
        return parameters
    return (
        by_adapter[adapter] if adapter is not None and adapter in by_adapter else parameters.original_module
    )


def task_of(config: Any) -> dict[str, Any]:
    """What the base model's configuration was given for the task, where the adapter was saved with settings."""
    task = (settings_in(config) or {}).get("task", {})
    if "id2label" not in task:
        return task
    # the head that comes with the adapter may be of another size than that of the checkpoint
    labels = {int(i): label for i, label in task["id2label"].items()}
    return {**task, "id2label": labels, "ignore_mismatched_sizes": True}


def forget(adapters: Adapters) -> None:
    """Remove the settings that the adapters were saved with."""
    for config in adapters.configs.values():
        if settings_in(config) is not None:
            config.auto_mapping = {k: v for k, v in config.auto_mapping.items() if k != CONFIG_KEY} or None


def saved_modules(config: Any) -> list[str]:
    """The modules that are trained and saved with an adapter."""
    return list(getattr(config, "modules_to_save", None) or ())
