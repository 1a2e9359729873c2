"""The attention and mask functions that Crisp registers with transformers, under one name.

Settings are found on the calling module, so one registration serves every model in the process
and a model without settings is not touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, find_packed_sequence_indices, sdpa_mask
from transformers.utils.output_capturing import _active_collector

from crisp_attention.methods.pairs import split_mask
from crisp_attention.models.host import CRISP
from crisp_attention.models.settings import attend, left_alone, settings_of
from crisp_attention.models.transformers import own
from crisp_attention.models.transformers.calling import calling
from crisp_attention.models.transformers.configs import config_of

# what the arguments of packed batches are called; those of lengths are read over all rows, one after another
QUERY_ENDS, KEY_ENDS, NUMBERS = "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"
ARGUMENTS = frozenset({QUERY_ENDS, KEY_ENDS, NUMBERS, "max_length_q", "max_length_k"})


@dataclass(frozen=True)
class Sequences:
    """The number of the sequence that each query (B or 1, L) and each key (B or 1, S) belongs to."""

    queries: Tensor
    keys: Tensor

    def restrict(self, mask: Tensor | None) -> Tensor:
        """A mask, boolean or additive, without the pairs of tokens of different sequences."""
        together = (self.queries[:, :, None] == self.keys[:, None, :])[:, None]
        if mask is None:
            return together
        if mask.dtype == torch.bool:
            return mask & together
        return mask.masked_fill(~together, torch.finfo(mask.dtype).min)


def told(given: Mapping[str, Any], query: Tensor, key: Tensor) -> Sequences | None:
    """The sequences that a call names by their lengths or numbers, None if it names none.

    Raises ValueError if they are not those of these queries (B, H, L, D) and keys (B, G, S, D).
    """
    queries, keys = given.get(QUERY_ENDS), given.get(KEY_ENDS)
    queries, keys = (keys if queries is None else queries), (queries if keys is None else keys)
    if queries is not None and keys is not None:
        return Sequences(_numbered(QUERY_ENDS, queries, query), _numbered(KEY_ENDS, keys, key))
    if (numbers := given.get(NUMBERS)) is None:
        return None
    if not numbers.shape[-1] == query.shape[2] == key.shape[2]:
        raise ValueError(
            f"{NUMBERS} numbers the sequences of {numbers.shape[-1]} tokens, but the attention has {query.shape[2]} "
            f"queries and {key.shape[2]} keys"
        )
    return Sequences(numbers, numbers)


def restarting(positions: Any, query: Tensor, key: Tensor) -> Sequences | None:
    """The sequences that begin wherever positions (B or 1, L) do not go on by one, None if there is only one."""
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return None
    if not positions.shape[1] == query.shape[2] == key.shape[2]:
        return None
    numbers = find_packed_sequence_indices(positions)
    return None if numbers is None else Sequences(numbers, numbers)


def _numbered(name: str, ends: Tensor, states: Tensor) -> Tensor:
    batch, _, length, _ = states.shape
    tokens = torch.arange(batch * length, device=states.device)
    ends = ends.flatten().to(tokens)
    if not torch.compiler.is_compiling() and (last := int(ends[-1])) != batch * length:
        raise ValueError(f"{name} ends at {last}, but there are {batch} x {length} tokens")
    return torch.searchsorted(ends, tokens, right=True).reshape(batch, length)


# Arguments that modules and attention functions name, and how they are handled here.
HANDLED = frozenset(
    {"dropout", "scaling", "softcap", "s_aux", "position_bias", "is_causal", "output_attentions"}
)
IN_THE_MASK = frozenset({"sliding_window", "position_ids"})
ONLY_FLASH = frozenset({"deterministic"})
UNDERSTOOD = HANDLED | IN_THE_MASK | ONLY_FLASH | ARGUMENTS


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

    Returns the output (B, L, H, Dv), and the weights if the caller of the model wants them. A call that drops
    nothing, and is not observed, is computed by the attention that the model had. Raises
    NotImplementedError for an argument that could change the mathematics and is not handled, and ValueError
    if the module has no settings and its configuration names Crisp's attention.
    """
    settings = settings_of(module)
    if settings is None:
        _check_dense(module)
    given = {name for name, each in kwargs.items() if each is not None and each is not False}
    wanted = "output_attentions" in given or _records_attentions()
    causal = query.shape[2] > 1 and _is_causal(module, kwargs.get("is_causal"))
    sequences = told(kwargs, query, key)
    if sequences is None and not causal and not (settings and settings.cross):
        # the masks of causal models already account for positions
        sequences = restarting(kwargs.get("position_ids"), query, key)
    causal = causal and attention_mask is None
    if sequences is not None:
        attention_mask = sequences.restrict(attention_mask)

    if left_alone(module, key.shape[2]):
        original = settings.original if settings else own.SDPA
        states = (query, key, value)
        found = own.compute(module, states, attention_mask, causal, original, kwargs, wanted)
        if found is not None:
            return found

    # an argument that is named somewhere could change the mathematics; the rest is passed on and never read
    if unknown := given & calling(type(module)).named - UNDERSTOOD:
        raise NotImplementedError(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which Crisp does not "
            f"handle; ignoring it could change the result"
        )
    valid, bias = split_mask(attention_mask)
    if (position_bias := kwargs.get("position_bias")) is not None:
        bias = position_bias if bias is None else bias + position_bias
    scaling = kwargs.get("scaling")
    output, weights = attend(
        module,
        query,
        key,
        value,
        sequences=None if sequences is None else sequences.queries,
        weights=wanted,
        valid=valid,
        causal=causal,
        bias=bias,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        dropout=kwargs.get("dropout", 0.0),
        **({} if scaling is None else {"scale": scaling}),
    )
    return output.transpose(1, 2).contiguous(), weights


def _check_dense(module: nn.Module) -> None:
    """Raise ValueError if a module without settings is configured to run Crisp's attention."""
    config = config_of(module)
    if config is None or config._attn_implementation == CRISP:
        raise ValueError(
            f"{type(module).__name__} has attn_implementation={CRISP!r} but no Crisp settings: the name alone "
            f"selects no method. Call crisp_attention.sparsify(model, method), or crisp_attention.restore(model) if "
            f"the model was saved sparse (crisp_attention.load(path) loads and restores it)"
        )


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    return bool(getattr(module, "is_causal", False) if given is None else given)


def _records_attentions() -> bool:
    # some models drop output_attentions from what they pass on; the recorder of outputs has it
    compiling = torch.compiler.is_compiling()
    recorded = _active_collector.global_var if compiling else _active_collector.get()
    return any("attentions" in name for name in recorded or ())


def register() -> None:
    """Make the implementation known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(CRISP, crisp_attention)
    AttentionMaskInterface.register(CRISP, crisp_mask)
