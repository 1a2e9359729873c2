"""The interface to a library of models: finding attention modules, switching them over, keeping records."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Parameter, Shape

# `Host.running` of a module whose attention Crisp computes
CRISP = "crisp"


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of a model: its number, its name in the model, and whether it is cross-attention."""

    index: int
    name: str
    module: nn.Module
    cross: bool


@dataclass(frozen=True)
class Traits:
    """What an attention module passes with every call: `explain` uses it where no forward pass runs."""

    causal: bool = False
    softcap: float | None = None
    dropout: float = 0.0
    sinks: bool = False
    text: bool = False  # some of its tokens may stay dense


# a layer that lacks parameters of its method, and those parameters
Missing = tuple[AttentionLayer, dict[str, Parameter]]


class Host(ABC):
    """A library of models, such as transformers.

    `root` is always a model that `roots` found. A host's own attention function calls
    `crisp_attention.models.settings.attend`, which finds the method on the module.

    name: the library's, followed by a dot and a word of its own if the library has several hosts.
    caches: whether self-attention may have more keys than queries, those of earlier calls.
    """

    name: ClassVar[str]
    caches: ClassVar[bool] = True

    def __reduce__(self) -> tuple[Callable[[str], "Host"], tuple[str]]:
        return named, (
            self.name,
        )  # a process that reads a sparse model needs the host, which may not be registered yet

    @property
    def library(self) -> str:
        """The name of the library."""
        return self.name.partition(".")[0]

    # --- finding

    @abstractmethod
    def roots(self, model: nn.Module) -> list[nn.Module]:
        """The models of this library in `model`, itself or inside wrappers; not the parts of those models."""

    @abstractmethod
    def layers(self, root: nn.Module) -> list[AttentionLayer]:
        """The attention modules of `root` in order, cross-attention included, counted from 0."""

    @abstractmethod
    def shape(self, module: nn.Module) -> Shape:
        """The shape of an attention module. Raises ValueError if it does not say how many heads it has."""

    def traits(self, module: nn.Module, training: bool) -> Traits:
        """What the module passes with every call."""
        return Traits(causal=bool(getattr(module, "is_causal", False)))

    def held(self, module: nn.Module) -> Iterable[object]:
        """Further objects of a module that switching over or a record may change; they are put back after errors."""
        return ()

    def why_not(self, root: nn.Module) -> str:
        """Why Crisp finds no attention layers in a model."""
        return f"{type(root).__name__} has no attention that Crisp can make sparse"

    def look(self, model: nn.Module, inputs: Any) -> bool:
        """Run a model once to find attention modules that nothing else shows; False if this host needs no such pass."""
        return False

    # --- switching over

    @abstractmethod
    def running(self, module: nn.Module) -> str:
        """The name of what computes a module's attention now, `CRISP` once it was switched over."""

    def own(self, root: nn.Module, module: nn.Module, taken: Any) -> str:
        """The name of what computed a module's attention before; `taken` is what `take_over` returned."""
        return "own"

    def own_runs(self, module: nn.Module, own: str) -> str:
        """The name of what computes a layer of a sparse model that is left to its `own` attention."""
        return own

    def take_over(self, root: nn.Module) -> Any:
        """Called before a model is switched over for the first time; returns what `give_back` needs."""
        return None

    @abstractmethod
    def switch(self, root: nn.Module) -> None:
        """Let Crisp compute the attention of all layers, whose settings are in place."""

    @abstractmethod
    def give_back(self, root: nn.Module, taken: Any) -> None:
        """Undo `take_over` and `switch`."""

    # --- records: what is saved with a model

    def check_savable(self, root: nn.Module) -> None:
        """Raise ValueError if the model could not be saved once it is sparse."""
        return

    @abstractmethod
    def write(self, root: nn.Module, record: dict[str, Any]) -> None:
        """Keep a record of the settings, plain values, where it is saved with the model."""

    @abstractmethod
    def read(self, model: nn.Module, root: nn.Module) -> tuple[dict[str, LayerMethod], str] | None:
        """Methods by layer name, and the phase, of the record of `root` or of what `model` adds to it; None without.

        Raises ValueError if it is of another version or damaged, as `crisp_attention.models.record.parse` does.
        """

    def dense_tokens(self, root: nn.Module) -> str | None:
        """Which tokens of joint attention the record of `root` leaves dense."""
        return "text"

    @abstractmethod
    def erase(self, root: nn.Module) -> None:
        """Remove the records of `root` and its parts, which are the model's own."""

    def forget(self, model: nn.Module, root: nn.Module) -> None:
        """Remove all records of a model that is dense again, those that it was loaded with too."""
        self.erase(root)

    def adopt(self, model: nn.Module, root: nn.Module, layers: Sequence[AttentionLayer]) -> None:
        """Let what is trained apart from the model, such as adapters, have its own parameters of these layers."""
        return

    def load(self, path: str | Path, given: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]] | None:
        """The dense model at `path`, and what `saved` needs to find its weights; None if it is of another library.

        Raises CheckpointError if it cannot be read.
        """
        return None

    def saved(
        self, model: nn.Module, root: nn.Module, missing: Sequence[Missing], place: Mapping[str, Any]
    ) -> Callable[[], None]:
        """Read the parameters that layers miss; the function returned fills them in, once the layers have them.

        `place` is what `load` returned, or empty. Raises ValueError if not all of them were saved.
        """
        if missing:
            raise ValueError(f"no checkpoint holds the parameters that {missing[0][0].name} learned")
        return lambda: None

    # --- running

    def inputs(self, root: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as arguments of a forward pass without a loss, on the model's device."""
        device = device_of(root)
        return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in batch.items()}


ANY = "torch"  # the host of models of no library
_REGISTERED: dict[str, Host] = {}
# hosts that come with Crisp, imported when a model is first looked at
_MODULES = {
    "diffusers": "crisp_attention.models.diffusers.host",
    "transformers.direct": "crisp_attention.models.transformers.direct",
    "transformers": "crisp_attention.models.transformers.host",
    ANY: "crisp_attention.models.sdpa.host",
}


def register(host: Host) -> None:
    """Register a host: it is asked before the hosts registered earlier."""
    _REGISTERED[host.name] = host


def named(name: str) -> Host:
    """The host with this name. Raises ValueError for an unknown one."""
    if name not in _REGISTERED and name in _MODULES:
        import_module(_MODULES[name])
    if name not in _REGISTERED:
        raise ValueError(f"unknown host {name!r}; the known hosts are {', '.join(h.name for h in hosts())}")
    return _REGISTERED[name]


def hosts() -> list[Host]:
    """All hosts: the last registered first, those that come with Crisp last."""
    own = [named(name) for name in _MODULES]
    return [*(host for host in reversed(_REGISTERED.values()) if host not in own), *own]


def host_of(model: nn.Module) -> tuple[Host, nn.Module]:
    """The host of a model and the model itself, found inside wrappers such as PEFT's or torch.compile's.

    Raises TypeError unless there is exactly one.
    """
    known = hosts()
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}{_modules_in(model)}")
    for host in known:
        roots = host.roots(model)
        if len(roots) == 1:
            return host, roots[0]
        if roots:
            raise TypeError(
                f"expected one {host.library} model, or a wrapper around one; {type(model).__name__} holds {len(roots)}"
            )
    libraries = " or ".join(dict.fromkeys(host.library for host in known if host.name != ANY))
    raise TypeError(
        f"expected a model of {libraries}, or one whose modules call torch's scaled_dot_product_attention; "
        f"{type(model).__name__} holds none that its code shows; with inputs= crisp.sparsify runs it to find them"
    )


def _modules_in(thing: object) -> str:
    """What of a pipeline is a model, in words."""
    parts = getattr(thing, "components", None)
    if not isinstance(parts, Mapping):
        return ""
    names = [name for name, each in parts.items() if isinstance(each, nn.Module)]
    return f"; its parts are: {', '.join(names)}" if names else ""


def outermost(model: nn.Module, kind: type) -> list[nn.Module]:
    """The modules of a class in `model`, itself or inside others, but none inside one of them."""
    found: list[nn.Module] = []
    stack = [model]
    while stack:
        module = stack.pop()
        if isinstance(module, kind):
            found.append(module)
        else:
            stack.extend(module.children())
    return found


def look(model: nn.Module, inputs: Any) -> None:
    """Let the host of a model run it once, to find its attention modules.

    Raises TypeError if the model is of a library whose attention modules are known.
    """
    for host in hosts():
        if host.look(model, inputs):
            return
        if host.roots(model):
            raise TypeError(
                f"inputs= is for models that call torch's attention themselves, not for {host.library}'s"
            )


def device_of(root: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer."""
    # modules that were quantised for a CPU hold neither
    return next(chain(root.parameters(), root.buffers()), torch.empty(0, device="cpu")).device


def dtype_of(root: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating point parameter or buffer."""
    floating = (each for each in chain(root.parameters(), root.buffers()) if each.is_floating_point())
    return next(floating, torch.empty(0)).dtype
