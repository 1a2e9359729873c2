"""The parameters that a method has, as parameters of the attention module that uses it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crisp_attention.errors import CheckpointError
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Parameter
from crisp_attention.models.host import AttentionLayer, Host, Missing, device_of

MODULE = "crisp_learned"
Values = Mapping[str, torch.Tensor]


class Parameters(nn.Module):
    """A layer's parameters of its method; calling it gives those that it has, by name, such as `rule.alpha`.

    A module that is called, so that what wraps modules, such as PEFT's `modules_to_save`, can decide whose
    parameters are used. Fitted ones are buffers, which exist once they were fitted or loaded.
    """

    def __init__(self, wanted: Mapping[str, Parameter], kept: Values | None = None) -> None:
        super().__init__()
        self.kinds = kinds(wanted)
        for name, each in wanted.items():
            part, own = name.split(".", 1)
            if not hasattr(self, part):
                self.add_module(part, _OfPart())
            getattr(self, part).shapes[own] = each.value.shape
            if each.trained:
                value = (kept or {}).get(name, each.value)
                value = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
                getattr(self, part).register_parameter(own, value)
            else:
                getattr(self, part).register_buffer(own, (kept or {}).get(name))

    def forward(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        # DataParallel's replicas register none
        found = (
            (name, getattr(getattr(self, name.split(".", 1)[0]), name.split(".", 1)[1]))
            for name in self.kinds
        )
        return {name: value for name, value in found if value is not None}

    def fill(self, values: Values) -> None:
        """Give parameters the values that were saved or fitted."""
        with torch.no_grad():
            for name, value in values.items():
                part, own = name.split(".", 1)
                holder, (_, dtype, trained) = getattr(self, part), self.kinds[name]
                if trained:
                    getattr(holder, own).copy_(value)
                else:
                    home = next(self.parameters(), value).device
                    setattr(holder, own, value.detach().to(home, dtype, copy=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[current(key)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *more)


class _OfPart(nn.Module):
    """The parameters of one part, kept in float32 when their model is cast: half precision would lose small steps."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, torch.Size] = {}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "_OfPart":
        # private in torch, read in 2.13: what moves and casts modules, the recurrent ones override it too
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for name, value in self._buffers.items():
            if value is None and prefix + name in state_dict:  # there is nothing yet to copy into
                self._buffers[name] = state_dict[prefix + name].new_empty(self.shapes[name])
        super()._load_from_state_dict(state_dict, prefix, *more)


def kinds(wanted: Mapping[str, Parameter]) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    """Shape, dtype and whether it is trained, of each parameter."""
    return {name: (each.value.shape, each.value.dtype, each.trained) for name, each in wanted.items()}


def current(key: str) -> str:
    """The name of a saved parameter, also of versions in which only rules had some: `crisp_learned.alpha`."""
    layer, _, name = key.rpartition(f"{MODULE}.")
    return key if "." in name else f"{layer}{MODULE}.rule.{name}"


def parameters_of(module: nn.Module) -> Values:
    """The parameters that this attention module holds for its method, by name."""
    held: Any = getattr(module, MODULE, None)
    return {} if held is None else held()


def is_trained(module: nn.Module) -> bool:
    """Whether this attention module holds parameters that are being trained."""
    return any(each.requires_grad for each in parameters_of(module).values())


def holding(layers: Iterable[AttentionLayer]) -> list[AttentionLayer]:
    """Those of the layers whose method has parameters."""
    return [layer for layer in layers if hasattr(layer.module, MODULE)]


def wanted_by(host: Host, module: nn.Module, method: LayerMethod | None) -> dict[str, Parameter]:
    """The parameters that a method has in this module. Raises ValueError if that needs a shape it does not give."""
    # most methods have none, and not every module says how many heads it has
    return method.parameters(host.shape(module)) if method and method.has_parameters else {}


def give_parameters(host: Host, module: nn.Module, method: LayerMethod | None) -> None:
    """Give an attention module the parameters of its method, new unless it has them, and no others."""
    wanted = wanted_by(host, module, method)
    present: Any = getattr(module, MODULE, None)
    # PEFT's wrapper holds a copy for each adapter, and the model's own
    own: Parameters | None = getattr(present, "original_module", present)
    before = own.kinds if own is not None else {}
    if before == kinds(wanted):
        return
    kept: Values = {}
    if isinstance(present, Parameters):
        kept = {n: v for n, v in present().items() if before[n] == kinds(wanted).get(n)}
    take_parameters(module)
    if wanted:
        home = device_of(module)
        here = {name: replace(each, value=each.value.to(home)) for name, each in wanted.items()}
        module.add_module(MODULE, Parameters(here, kept))


def take_parameters(module: nn.Module) -> None:
    """Remove the parameters that `give_parameters` gave."""
    if hasattr(module, MODULE):
        delattr(module, MODULE)


def fill_parameters(module: nn.Module, values: Values) -> None:
    """Give an attention module the values of its parameters, those of every adapter on it too."""
    for each in getattr(module, MODULE).modules():
        if isinstance(each, Parameters):
            each.fill(values)


def missing_parameters(host: Host, methods: Iterable[tuple[AttentionLayer, LayerMethod]]) -> list[Missing]:
    """The layers that do not hold the parameters of their method yet, and those parameters.

    Layers that hold them already may have trained them.
    """
    found = []
    for layer, method in methods:
        wanted, present = wanted_by(host, layer.module, method), parameters_of(layer.module)
        shapes = {name: each.value.shape for name, each in wanted.items()}
        if shapes != {name: value.shape for name, value in present.items()}:
            found.append((layer, wanted))
    return found


def not_held(place: object, key: str, wanted: Tensor, found: Tensor | None) -> CheckpointError:
    """The error of a checkpoint that lacks what a layer learned, or has it in another shape."""
    where = place or "a model without a checkpoint"
    if found is None:
        return CheckpointError(
            f"{where} does not hold {key}, which this model's attention learned: either its settings belong to other "
            f"weights, or they came from elsewhere: use crisp.load, or crisp.restore on a model just loaded from its "
            f"own checkpoint"
        )
    shapes = [" x ".join(map(str, each.shape)) or "()" for each in (wanted, found)]
    return CheckpointError(
        f"{where}: {key}, which this model's attention learned, must be of shape {shapes[0]}, got {shapes[1]}"
    )
