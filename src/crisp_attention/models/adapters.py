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
from transformers.utils import ADAPTER_CONFIG_NAME

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models import record
from crisp_attention.models.learned import MODULE, Missing, Values, current
from crisp_attention.models.notice import CONFIG_KEY
from crisp_attention.models.selection import by_name
from crisp_attention.models.settings import AttentionLayer


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
        """What layers have learned beside each adapter, as it was saved with the adapter; that in use comes last.

        Raises ValueError if the adapter in use was not saved with all of it.
        """
        missing = list(missing)
        for name in sorted(self.configs, key=lambda name: name == self.active):
            settings = settings_in(self.configs[name]) or {}
            saved = {
                by_name(found, each).name: values for each, values in settings.get("learned", {}).items()
            }
            for layer, wanted in missing:
                saved_here = saved.get(layer.name, {}).items()
                values = {
                    current(f"{MODULE}.{n}").removeprefix(f"{MODULE}."): torch.tensor(v)
                    for n, v in saved_here
                }
                shapes = {n: v.shape for n, v in values.items()}
                if all(
                    shapes.get(n, None if p.trained else p.value.shape) == p.value.shape
                    for n, p in wanted.items()
                ):
                    yield layer, name, values
                elif name == self.active:
                    raise ValueError(
                        f"the configuration of adapter {name!r} does not hold what {layer.name} learned: expected "
                        f"{', '.join(wanted)} in auto_mapping.{CONFIG_KEY}.learned, found {sorted(saved)}"
                    )


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
    return None if settings is None else record.parse(settings, f"the adapter's auto_mapping.{CONFIG_KEY}")


def recorded_at(folder: Path) -> tuple[dict[str, LayerMethod], str] | None:
    """Methods by layer name, and the phase, with which the adapters in a folder were saved together, if any were.

    Raises ValueError if the settings are of another version or damaged.
    """
    named = sorted(folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))  # all adapters but "default" have subfolders
    for file in (folder / ADAPTER_CONFIG_NAME, *named):
        saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if (settings := (saved.get("auto_mapping") or {}).get(CONFIG_KEY)) is not None:
            return record.parse(settings, f"auto_mapping.{CONFIG_KEY} in {file}")
    return None


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
