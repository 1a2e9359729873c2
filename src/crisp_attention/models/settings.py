"""What Crisp keeps on an attention module, and computing the attention of that module with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.method import Method
from crisp_attention.models.host import AttentionLayer, Host
from crisp_attention.models.parameters import is_trained, parameters_of

ATTRIBUTE = "_crisp"
Phase = Literal["always", "train", "eval"]
PHASES: tuple[str, ...] = get_args(Phase)
Observer = Callable[["Settings", LayerMethod, Observation], None]


@dataclass
class Settings:
    """Settings of one attention module; `method` None leaves the module as the model had it.

    `dense_tokens` "text": in joint attention over text and others the tokens of the text stay dense.
    `original` names the attention that it had. `only_observed`: the model is not sparse, and loses its
    settings when nothing observes it any more.
    """

    index: int
    name: str
    cross: bool
    original: str
    host: Host
    method: LayerMethod | None = None
    phase: str = "always"
    backend: str = dispatch.AUTO
    dense_tokens: str | None = "text"
    observers: list[Observer] = field(default_factory=list)
    only_observed: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "observers": []}  # a copy of the model is not being measured

    def active_method(self, training: bool) -> LayerMethod | None:
        """The method to use now, None when the module is dense in this phase."""
        return self.method if self.phase in ("always", "train" if training else "eval") else None

    def why_dense(self, training: bool, keys: int | None, *, learns: bool = False) -> str | None:
        """Why a call with this many keys is left to the attention that the model had; None if it is not.

        `keys` None stands for any number of them. What `learns` gets a gradient in every step, if it is zero: DDP waits
        for it.
        """
        if self.method is None:
            return "it is dense"
        method = self.active_method(training)
        if method is None:
            return f"its method is for phase {self.phase!r} only"
        # a kernel that was asked for by name gets what it was asked for
        if self.backend == dispatch.AUTO and not learns and method.drops_nothing(keys):
            return "it drops nothing" if method.drops_nothing() else f"it drops nothing of {keys} keys"
        return None


def settings_of(module: nn.Module) -> Settings | None:
    """The settings of an attention module, None if it has none."""
    return getattr(module, ATTRIBUTE, None)


def settings_on(layer: AttentionLayer) -> Settings:
    """The settings of a layer of a sparse model."""
    return getattr(layer.module, ATTRIBUTE)


def left_alone(module: nn.Module, keys: int) -> bool:
    """Whether the attention that the model had computes a call of this module: it drops nothing and is not observed."""
    settings = settings_of(module)
    if settings is None:
        return True
    # under a compiler lengths may be symbols
    symbolic = torch.compiler.is_compiling() or torch.jit.is_tracing()
    learns = module.training and torch.is_grad_enabled() and is_trained(module)
    why = settings.why_dense(module.training, None if symbolic else keys, learns=learns)
    return not settings.observers and why is not None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sequences: Tensor | None = None,
    weights: bool = False,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, L, Dv) of an attention module by its settings and, if asked for, weights (B, H, L, S).

    `given` are further fields of the `Call`: `valid`, `causal`, `bias`, `scale` … `sequences` (B or 1, L) are
    the numbers of the packed sequences that the queries belong to.
    """
    settings = settings_of(module)
    method = (settings and settings.active_method(module.training)) or Method()
    call = Call(
        query,
        key,
        value,
        method,
        seed=_seed(module, settings, query, sequences) if method.uses_seed else None,
        parameters=parameters_of(module),
        **{"scale": query.shape[-1] ** -0.5, **given},
    )
    if settings is None:
        return dispatch.attention(call, weights=weights)

    def observe(seen: Observation) -> None:
        if torch._C._current_graph_task_id() == -1:  # not again while checkpointing recomputes
            for observer in tuple(settings.observers):  # another thread may begin or end observing
                observer(settings, method, seen)

    return dispatch.attention(
        call, settings.backend, observe=observe if settings.observers else None, weights=weights
    )


def _seed(module: nn.Module, settings: Settings | None, query: Tensor, sequences: Tensor | None) -> Tensor:
    # Training draws for every example. Evaluation draws once for all, from the layer's number:
    # evaluating twice, in other batches, or with a key/value cache gives the same result.
    if not module.training:
        return torch.tensor(settings.index if settings else 0, device=query.device)
    drawn = torch.randint(2**31, (query.shape[0], 1, 1, 1), device=query.device)
    return drawn if sequences is None else drawn + sequences[:, None, :, None]
