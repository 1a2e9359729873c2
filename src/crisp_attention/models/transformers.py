"""The attention and mask functions that Crisp registers with transformers, under one name.

Settings are found on the calling module, so one registration serves every model in the process
and a model without settings is not touched.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import _active_collector

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import note
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods import Method
from crisp_attention.models.configs import IMPLEMENTATION
from crisp_attention.models.learned import learned_by
from crisp_attention.models.settings import ATTRIBUTE, Settings, check_dense
from crisp_attention.pairs import split_mask

# Arguments that models pass along and that change nothing here: what they say is already in the
# mask, or they only matter to other implementations.
HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "is_causal",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
# what torch's SDPA cannot do for a layer that stays dense
ONLY_EAGER = frozenset({"softcap", "s_aux"})
HANDLED = frozenset({"softcap", "s_aux", "position_bias"})


def crisp_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' boolean mask, never skipped for causal models: a row must know its own keys.

    Where it only says which keys are padding, one row of it is held, whatever the number of queries.
    """
    options = {**kwargs, "allow_is_causal_skip": False}
    queries = options.get("q_length")
    if queries is None or options.get("mask_function") is not bidirectional_mask_function:
        return sdpa_mask(*args, **options)
    mask = sdpa_mask(*args, **{**options, "q_length": 1})
    return None if mask is None else mask.expand(-1, -1, queries, -1)


def crisp_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Sparse attention for one module of a transformers model, by the settings it carries.

    Returns the output (B, L, H, Dv), and the weights if the caller of the model wants them. Raises
    NotImplementedError for an argument that could change the mathematics and is not handled, and ValueError
    if the module has no settings and its configuration names Crisp's attention.
    """
    settings: Settings | None = getattr(module, ATTRIBUTE, None)
    if settings is None:
        check_dense(module)
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    wanted = "output_attentions" in given or _records_attentions()
    method = settings.active_method(module.training) if settings else None
    if method is None and not (settings and settings.observers):
        eager = settings is not None and settings.original == "eager"
        if not eager and not wanted and not given & ONLY_EAGER:
            note("sdpa")
            return ALL_ATTENTION_FUNCTIONS["sdpa"](
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
    method = method or Method()

    if unknown := given - HARMLESS - HANDLED:
        raise NotImplementedError(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which Crisp does not "
            f"handle; ignoring it could change the result"
        )
    valid, bias = split_mask(attention_mask)
    causal = attention_mask is None and query.shape[2] > 1 and _is_causal(module, kwargs.get("is_causal"))
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
        dropout=dropout,
        seed=_seed(module, settings, query) if method.uses_seed else None,
        learned=learned_by(module) or {},
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


def _seed(module: nn.Module, settings: Settings | None, query: Tensor) -> Tensor:
    # Training draws anew for every example. Evaluation draws once for all, from the layer's number:
    # evaluating twice, in other batches, or with a key/value cache gives the same result.
    if module.training:
        return torch.randint(2**31, (query.shape[0], 1, 1, 1), device=query.device)
    return torch.tensor(settings.index if settings else 0, device=query.device)


def register() -> None:
    """Make the implementation known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, crisp_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, crisp_mask)


register()
