"""The attention and mask functions that Crisp registers with transformers, under one name.

Settings are found on the calling module, so one registration serves every model in the process
and a model without settings is not touched.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.utils.output_capturing import _active_collector

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.method import Method
from crisp_attention.methods.pairs import split_mask
from crisp_attention.models import own, packing
from crisp_attention.models.calling import calling
from crisp_attention.models.configs import IMPLEMENTATION
from crisp_attention.models.learned import parameters_in
from crisp_attention.models.settings import ATTRIBUTE, Settings, check_dense

# What modules and attention functions have names for, and what becomes of it here.
HANDLED = frozenset(
    {"dropout", "scaling", "softcap", "s_aux", "position_bias", "is_causal", "output_attentions"}
)
IN_THE_MASK = frozenset({"sliding_window", "position_ids"})
ONLY_FLASH = frozenset({"deterministic"})
UNDERSTOOD = HANDLED | IN_THE_MASK | ONLY_FLASH | packing.ARGUMENTS


def crisp_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' boolean mask, or None where its SDPA needs none: no padding, and causal as the module says.

    Where it only says which keys are padding, one row of it is held, whatever the number of queries.
    """
    queries = kwargs.get("q_length")
    if queries is None or kwargs.get("mask_function") is not bidirectional_mask_function:
        return sdpa_mask(*args, **kwargs)
    mask = sdpa_mask(*args, **{**kwargs, "q_length": 1, "allow_is_causal_skip": False})
    return None if mask is None else mask.expand(-1, -1, queries, -1)


def crisp_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Sparse attention for one module of a transformers model, by the settings it carries.

    Returns the output (B, L, H, Dv), and the weights if the caller of the model wants them. What drops
    nothing, and is not watched, is computed by the attention that the model had. Raises
    NotImplementedError for an argument that could change the mathematics and is not handled, and ValueError
    if the module has no settings and its configuration names Crisp's attention.
    """
    settings: Settings | None = getattr(module, ATTRIBUTE, None)
    if settings is None:
        check_dense(module)
    given = {name for name, each in kwargs.items() if each is not None and each is not False}
    wanted = "output_attentions" in given or _records_attentions()
    causal = query.shape[2] > 1 and _is_causal(module, kwargs.get("is_causal"))
    sequences = packing.told(kwargs, query, key)
    if sequences is None and not causal and not (settings and settings.cross):
        # the masks of causal models know of positions already
        sequences = packing.restarting(kwargs.get("position_ids"), query, key)
    causal = causal and attention_mask is None
    if sequences is not None:
        attention_mask = sequences.restrict(attention_mask)

    method = settings.active_method(module.training) if settings else None
    if not (settings and settings.observers) and _is_dense(method, settings, key):
        original = settings.original if settings else own.SDPA
        states = (query, key, value)
        found = own.compute(module, states, attention_mask, causal, original, kwargs, wanted)
        if found is not None:
            return found
    method = method or Method()

    # what has a name somewhere could change the mathematics; the rest travelled along and is read nowhere
    if unknown := given & calling(type(module)).named - UNDERSTOOD:
        raise NotImplementedError(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which Crisp does not "
            f"handle; ignoring it could change the result"
        )
    valid, bias = split_mask(attention_mask)
    if (position_bias := kwargs.get("position_bias")) is not None:
        bias = position_bias if bias is None else bias + position_bias

    block_means = None
    if settings and method.block_size and query.shape[2] == 1 and not torch.compiler.is_compiling():
        row = valid
        if row is None:
            row = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
        block_means = settings.decoding.block_means(key, row, method.block_size)

    def observe(seen: Observation) -> None:
        if settings and torch._C._current_graph_task_id() == -1:  # not again while checkpointing recomputes
            for observer in tuple(settings.observers):  # another thread may begin or end its watching
                observer(settings, method, seen)

    scaling = kwargs.get("scaling")
    call = Call(
        query,
        key,
        value,
        method,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        valid=valid,
        causal=causal,
        bias=bias,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        dropout=kwargs.get("dropout", 0.0),
        seed=_seed(module, settings, query, sequences) if method.uses_seed else None,
        parameters=parameters_in(module),
        block_means=block_means,
    )
    output, weights = dispatch.attention(
        call,
        settings.backend if settings else dispatch.AUTO,
        observe=observe if settings and settings.observers else None,
        weights=wanted,
    )
    return output.transpose(1, 2).contiguous(), weights


def note_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook: which layer of which cache an attention module is about to add to."""
    settings: Settings | None = getattr(module, ATTRIBUTE, None)
    if settings is None or torch.compiler.is_compiling():
        return
    cache = kwargs.get("past_key_values")
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    index = getattr(module, "layer_idx", None)
    if layers is None or not isinstance(index, int) or index >= len(layers):
        settings.decoding.before(None)
    else:
        settings.decoding.before(layers[index])


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    return bool(getattr(module, "is_causal", False) if given is None else given)


def _records_attentions() -> bool:
    # some models take output_attentions away from what they pass on; what records outputs has heard of it
    compiling = torch.compiler.is_compiling()
    recorded = _active_collector.global_var if compiling else _active_collector.get()
    return any("attentions" in name for name in recorded or ())


def _is_dense(method: LayerMethod | None, settings: Settings | None, key: Tensor) -> bool:
    # A kernel that was asked for by name gets what it was asked for. Under a compiler lengths may be symbols.
    if method is None or settings is None:
        return True
    symbolic = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return settings.backend == dispatch.AUTO and method.drops_nothing(None if symbolic else key.shape[2])


def _seed(
    module: nn.Module, settings: Settings | None, query: Tensor, sequences: packing.Sequences | None
) -> Tensor:
    # Training draws for every example. Evaluation draws once for all, from the layer's number:
    # evaluating twice, in other batches, or with a key/value cache gives the same result.
    if not module.training:
        return torch.tensor(settings.index if settings else 0, device=query.device)
    drawn = torch.randint(2**31, (query.shape[0], 1, 1, 1), device=query.device)
    return drawn if sequences is None else drawn + sequences.queries[:, None, :, None]


def register() -> None:
    """Make the implementation known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, crisp_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, crisp_mask)


register()
