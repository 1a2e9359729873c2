"""The host of models that call torch's `scaled_dot_product_attention` themselves: any `nn.Module`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Shape
from crisp_attention.models.host import ANY, CRISP, AttentionLayer, Host, register
from crisp_attention.models.parameters import MODULE, Parameters
from crisp_attention.models.record import parse
from crisp_attention.models.sdpa.finding import SEEN, attention_modules_of, is_cross, look, shape_of
from crisp_attention.models.sdpa.mode import RUNNING, begin, end

RECORD = "_crisp_record"
OWN = "sdpa"


class AnyModule(Host):
    """Any model; a module counts if its class names torch's attention function, or it was seen to call it."""

    name: ClassVar[str] = ANY

    def roots(self, model: nn.Module) -> list[nn.Module]:
        model = unwrapped(model)
        return [model] if next(attention_modules_of(model), None) else []

    def layers(self, root: nn.Module) -> list[AttentionLayer]:
        modules = dict(root.named_modules())
        return [
            AttentionLayer(i, name, module, is_cross(name, module, modules.get(name.rpartition(".")[0])))
            for i, (name, module) in enumerate(attention_modules_of(root))
        ]

    def look(self, model: nn.Module, inputs: Any) -> bool:
        given: tuple[Any, ...] = ()
        named: Mapping[str, Any] = {}
        if isinstance(inputs, Mapping):
            named = inputs
        else:
            given = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        if not (found := look(unwrapped(model), given, named)):
            raise ValueError(
                f"{type(model).__name__} called no attention function of torch with these inputs: its code must call "
                "torch.nn.functional.scaled_dot_product_attention"
            )
        for module, seen in found.items():
            setattr(module, SEEN, seen)
        return True

    def shape(self, module: nn.Module) -> Shape:
        return shape_of(module)

    def running(self, module: nn.Module) -> str:
        return CRISP if begin in module._forward_pre_hooks.values() else OWN

    def own(self, root: nn.Module, module: nn.Module, taken: Any) -> str:
        return OWN

    def take_over(self, root: nn.Module) -> dict[str, bool]:
        return {name: each.use_nested_tensor for name, each in _encoders(root)}

    def switch(self, root: nn.Module) -> None:
        # nested tensors of padded batches reach no attention module
        for _, encoder in _encoders(root):
            encoder.use_nested_tensor = False
        for layer in self.layers(root):
            if self.running(layer.module) != CRISP:
                setattr(layer.module, RUNNING, [])
                layer.module.register_forward_pre_hook(begin)
                layer.module.register_forward_hook(end, always_call=True)
        forget_what_was_compiled()

    def give_back(self, root: nn.Module, taken: dict[str, bool]) -> None:
        encoders = dict(_encoders(root))
        for name, nested in taken.items():
            if name in encoders:
                encoders[name].use_nested_tensor = nested
        for module in root.modules():
            for hooks, own in ((module._forward_pre_hooks, begin), (module._forward_hooks, end)):
                for key in [key for key, each in hooks.items() if each is own]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
            vars(module).pop(RUNNING, None)
            vars(module).pop(SEEN, None)
        forget_what_was_compiled()

    def write(self, root: nn.Module, record: dict[str, Any]) -> None:
        setattr(root, RECORD, record)

    def read(self, model: nn.Module, root: nn.Module) -> tuple[dict[str, LayerMethod], str] | None:
        found = getattr(root, RECORD, None)
        return None if found is None else parse(found, f"the record of this {type(root).__name__}")

    def adopt(self, model: nn.Module, root: nn.Module, layers: Sequence[AttentionLayer]) -> None:
        adapted = getattr(model, "peft_config", None) or getattr(root, "peft_config", None)
        # those that PEFT has wrapped are among its `modules_to_save`
        alone = [each for each in layers if isinstance(getattr(each.module, MODULE), Parameters)]
        if adapted and alone:
            raise ValueError(
                f"{alone[0].name} would learn parameters that the adapters of this {type(root).__name__} are saved "
                f'without: make the model sparse first, and give PEFT modules_to_save=["{MODULE}"]'
            )

    def erase(self, root: nn.Module) -> None:
        for module in root.modules():
            vars(module).pop(RECORD, None)


def _encoders(root: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in root.named_modules():
        if isinstance(module, nn.TransformerEncoder):
            yield name, module


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's wrapper, those of data parallelism, and PEFT's."""
    peft: Any = sys.modules.get("peft")
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None and peft is not None and isinstance(model, peft.PeftModel):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def forget_what_was_compiled() -> None:
    """torch.compile does not notice hooks that come or go: what it has compiled in this process is compiled again."""
    convert: Any = sys.modules.get("torch._dynamo.convert_frame")
    if convert is not None and not torch.compiler.is_compiling() and convert.input_codes.seen:
        torch.compiler.reset()


register(AnyModule())
