"""The host of those transformers models that call torch's attention functions themselves, such as Falcon."""

import inspect
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.host import outermost, register
from crisp_attention.models.sdpa.finding import attention_modules_of
from crisp_attention.models.sdpa.host import AnyModule
from crisp_attention.models.transformers.host import Transformers, attention_layers


class DirectTransformers(AnyModule, Transformers):
    """Models of transformers none of whose modules uses its attention interface: switched over as any module is,
    saved and loaded as transformers models are.
    """

    name: ClassVar[str] = "transformers.direct"

    def roots(self, model: nn.Module) -> list[nn.Module]:
        return [root for root in _without_interface(model) if next(attention_modules_of(root), None)]

    def look(self, model: nn.Module, inputs: Any) -> bool:
        return bool(_without_interface(model)) and super().look(model, inputs)

    def own_runs(self, module: nn.Module, own: str) -> str:
        return own

    def take_over(self, root: nn.Module) -> Any:
        return Transformers.take_over(self, root), super().take_over(root)

    def give_back(self, root: nn.Module, taken: Any) -> None:
        configs, encoders = taken
        super().give_back(root, encoders)
        Transformers.give_back(self, root, configs)

    def check_savable(self, root: Any) -> None:
        # which stays what it was
        found = root.config._attn_implementation
        if found != "sdpa" and any(_asks(type(layer.module)) for layer in self.layers(root)):
            raise ValueError(
                f"{type(root).__name__} was loaded with attn_implementation={found!r}, with which it does not call "
                "torch's scaled_dot_product_attention; load it with attn_implementation='sdpa'"
            )

    def write(self, root: nn.Module, record: dict[str, Any]) -> None:
        Transformers.write(self, root, record)

    def read(self, model: nn.Module, root: nn.Module) -> tuple[dict[str, LayerMethod], str] | None:
        return Transformers.read(self, model, root)

    def erase(self, root: nn.Module) -> None:
        Transformers.erase(self, root)


def _asks(cls: type) -> bool:
    """Whether a class looks up which attention it is to compute."""
    own = (each for base in cls.__mro__ for each in vars(base).values() if inspect.isfunction(each))
    return any("_attn_implementation" in inspect.unwrap(each).__code__.co_names for each in own)


def _without_interface(model: nn.Module) -> list[nn.Module]:
    return [root for root in outermost(model, PreTrainedModel) if not attention_layers(root)]


register(DirectTransformers())
