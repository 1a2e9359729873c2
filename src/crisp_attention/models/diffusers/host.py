"""The host of diffusers' models: attention by torch's function as in any module, records in their config."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from crisp_attention.errors import CheckpointError
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.diffusers.notice import CONFIG_KEY
from crisp_attention.models.host import Missing, Traits, outermost, register
from crisp_attention.models.parameters import MODULE, Values, fill_parameters, not_held
from crisp_attention.models.record import parse
from crisp_attention.models.sdpa.calls import TEXT, Together
from crisp_attention.models.sdpa.finding import attention_modules_of
from crisp_attention.models.sdpa.host import AnyModule
from crisp_attention.models.settings import settings_of

# where the tokens of the text stand in the joint attention of a model, by the name of its class
JOINT = {
    "CogVideoXTransformer3DModel": "first",
    "FluxTransformer2DModel": "first",
    "SD3Transformer2DModel": "last",
}
TOGETHER = ("attn", "attn1")  # the names of joint attention in its block
LOGGERS = ("diffusers.configuration_utils", "diffusers.models.modeling_utils")


class Diffusers(AnyModule):
    """Models of diffusers. Nothing of diffusers is imported before a model of it is there, or one is loaded."""

    name: ClassVar[str] = "diffusers"
    caches: ClassVar[bool] = False

    def roots(self, model: nn.Module) -> list[nn.Module]:
        if "diffusers" not in sys.modules:
            return []
        from diffusers import ModelMixin

        return [each for each in outermost(model, ModelMixin) if next(attention_modules_of(each), None)]

    def look(self, model: nn.Module, inputs: Any) -> bool:
        return bool(self.roots(model)) and super().look(model, inputs)

    def switch(self, root: nn.Module) -> None:
        super().switch(root)
        place = next((JOINT[each.__name__] for each in type(root).__mro__ if each.__name__ in JOINT), None)
        if place is None:
            return
        hook: Any = text_first if place == "first" else text_last
        for block in self._blocks(root):
            if hook not in block._forward_pre_hooks.values():
                for name in TOGETHER:
                    if hasattr(block, name):
                        setattr(getattr(block, name), TEXT, None)
                block.register_forward_pre_hook(hook, with_kwargs=True)

    def give_back(self, root: nn.Module, taken: Any) -> None:
        for layer in self.layers(root):
            vars(layer.module).pop(TEXT, None)
        for block in self._blocks(root):
            hooks = block._forward_pre_hooks
            for key in [key for key, each in hooks.items() if each in (text_first, text_last)]:
                del hooks[key]
                block._forward_pre_hooks_with_kwargs.pop(key, None)
        super().give_back(root, taken)

    def _blocks(self, root: nn.Module) -> list[nn.Module]:
        names = [layer.name.rpartition(".") for layer in self.layers(root)]
        return [root.get_submodule(block) for block, _, own in names if own in TOGETHER]

    def traits(self, module: nn.Module, training: bool) -> Traits:
        settings = settings_of(module)
        dense = settings is not None and settings.dense_tokens is not None
        return replace(super().traits(module, training), text=dense and hasattr(module, TEXT))

    def dense_tokens(self, root: Any) -> str | None:
        found = root.config.get(CONFIG_KEY, {}).get("dense_tokens", "text")
        if found not in ("text", None):
            raise ValueError(f"dense_tokens in {CONFIG_KEY} must be 'text' or null, got {found!r}")
        return found

    def write(self, root: Any, record: dict[str, Any]) -> None:
        root.register_to_config(**{CONFIG_KEY: record})

    def read(self, model: nn.Module, root: Any) -> tuple[dict[str, LayerMethod], str] | None:
        found = root.config.get(CONFIG_KEY)
        return None if found is None else parse(found, f"{CONFIG_KEY} in the config of {type(root).__name__}")

    def erase(self, root: Any) -> None:
        if CONFIG_KEY in root.config:
            root._internal_dict = type(root.config)({k: v for k, v in root.config.items() if k != CONFIG_KEY})

    def load(self, path: str | Path, given: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]] | None:
        if (name := _class_name(Path(path) / str(given.get("subfolder", "")))) is None:
            return None
        import diffusers

        try:
            with quiet():
                model = getattr(diffusers, name).from_pretrained(path, use_safetensors=True, **given)
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read as a {name} of diffusers: {error}") from error
        return model, {
            "path": Path(path) / str(given.get("subfolder", "")),
            "variant": given.get("variant"),
        }

    def saved(
        self, model: nn.Module, root: Any, missing: Sequence[Missing], place: Mapping[str, Any]
    ) -> Callable[[], None]:
        folder = place.get("path") or root.config.get("_name_or_path") or ""
        learned = _learned(Path(folder), place.get("variant")) if missing else {}
        found: list[tuple[nn.Module, Values]] = []
        for layer, wanted in missing:
            values = {}
            for name, each in wanted.items():
                key = f"{layer.name}.{MODULE}.{name}"
                if key in learned and learned[key].shape == each.value.shape:
                    values[name] = learned[key]
                elif each.trained:  # what is fitted may have been saved before
                    raise not_held(folder, key, each.value, learned.get(key))
            found.append((layer.module, values))

        def fill() -> None:
            for module, values in found:
                fill_parameters(module, values)

        return fill


def text_first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The hook before a block whose joint attention has the text first."""
    _tell(block, args, kwargs, "first")


def text_last(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The hook before a block whose joint attention has the text last."""
    _tell(block, args, kwargs, "last")


def _tell(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: str) -> None:
    states, text = (
        kwargs.get(name, args[i] if len(args) > i else None)
        for i, name in enumerate(("hidden_states", "encoder_hidden_states"))
    )
    together = None
    if states is not None and text is not None:
        together = Together(text.shape[1], place, states.shape[1] + text.shape[1])
    for name in TOGETHER:
        if (module := getattr(block, name, None)) is not None:
            setattr(module, TEXT, together)


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers does not warn of the settings and parameters of Crisp, as they are about to be read."""

    def of_others(record: logging.LogRecord) -> bool:
        return "crisp" not in record.getMessage()

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for each in loggers:
        each.addFilter(of_others)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(of_others)


def _class_name(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = config.get("_class_name") if isinstance(config, dict) and "_diffusers_version" in config else None
    return name if isinstance(name, str) else None


def _learned(folder: Path, variant: str | None) -> dict[str, Any]:
    from safetensors import safe_open

    found: dict[str, Any] = {}
    # model.safetensors, model-00001-of-00002.safetensors, and the same with .variant
    of_it = re.compile(
        rf"[^.]+{'' if variant is None else re.escape(f'.{variant}')}(-\d+-of-\d+)?\.safetensors"
    )
    for file in sorted(each for each in folder.glob("*.safetensors") if of_it.fullmatch(each.name)):
        with safe_open(file, framework="pt") as weights:
            found |= {key: weights.get_tensor(key) for key in weights.keys() if f".{MODULE}." in key}  # noqa: SIM118
    return found


register(Diffusers())
