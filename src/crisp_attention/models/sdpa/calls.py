"""Calls of torch's attention functions, computed by the method of the module that makes them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias
from torch.nn.functional import linear, pad

from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.pairs import causal_mask, split_mask
from crisp_attention.models.sdpa.finding import MULTIHEAD, SDPA
from crisp_attention.models.settings import Settings, attend, left_alone, settings_of

# on a module of joint attention: the `Together` of this pass
TEXT = "_crisp_text"


class Together(NamedTuple):
    """The tokens of joint attention in one pass: of the text, which is "first" or "last", and all."""

    text: int
    place: str
    tokens: int


def scaled_dot_product(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` is called with, by the module's method.

    Queries (…, L, D), keys (…, S, D) and values (…, S, Dv), as there.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if stays_dense(module, queries, keys):
        return SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    places = torch.broadcast_shapes(*(each.shape[:-3] for each in (query, key, value)))
    heads, groups = (each.shape[-3] if each.dim() > 2 else 1 for each in (query, key))
    if heads != groups and 1 not in (heads, groups) and not enable_gqa:
        raise ValueError(f"{heads} query heads share {groups} key heads only with enable_gqa=True")
    if heads == 1 < groups:
        query = query.expand(*query.shape[:-3], groups, *query.shape[-2:])
    folded = _heads_in_front(module, query, key)
    states = [
        _batched(each.expand(*places, *each.shape[-3:]), number)
        for each, number in zip((query, key, value), (*folded, folded[1]), strict=True)
    ]
    if isinstance(attn_mask, CausalBias):  # whose numbers are made where they are used
        attn_mask = attn_mask._materialize(query.device)
    valid, bias = split_mask(
        None if attn_mask is None else _of_batch(attn_mask, query, folded[0]), "attn_mask"
    )
    if is_causal and (queries != keys or attn_mask is not None):
        earlier = causal_mask(queries, keys, query.device)
        valid = earlier if valid is None else valid & earlier
    output, _ = attend(
        module,
        *states,
        valid=valid,
        bias=bias,
        causal=is_causal and queries == keys and attn_mask is None,
        dropout=dropout_p,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        dense=dense_tokens(module),
    )
    return output.reshape(*places, *query.shape[-3:-1], value.shape[-1])


def attends_to_others(
    module: nn.Module, func: Any, query: Tensor, key: Tensor, *given: Any, **named: Any
) -> bool:
    """Whether a call of a module that was not chosen as cross-attention attends to tokens of something else."""
    settings, where = settings_of(module), -2 if func is SDPA else 0
    if settings is None or settings.cross:
        return False
    return _of_others(module, settings, query.shape[where], key.shape[where])


def stays_dense(module: nn.Module, queries: int, keys: int) -> bool:
    """Whether a call is left to torch: by the module's settings, or as it attends to tokens of something else."""
    settings = settings_of(module)
    others = settings is not None and not settings.cross and _of_others(module, settings, queries, keys)
    return others or left_alone(module, keys)


def _of_others(module: nn.Module, settings: Settings, queries: int, keys: int) -> bool:
    together: Together | None = getattr(module, TEXT, None)
    if together is not None:
        return not queries == keys == together.tokens
    return keys < queries or (keys > queries and not settings.host.caches)


def dense_tokens(module: nn.Module) -> slice | None:
    """The tokens of a self-attention that the method leaves alone, where the module's host told how many there are."""
    together: Together | None = getattr(module, TEXT, None)
    settings = settings_of(module)
    if together is None or not together.text or settings is None or settings.dense_tokens is None:
        return None
    start = 0 if together.place == "first" else together.tokens - together.text
    return slice(start, start + together.text)


def _heads_in_front(module: nn.Module, query: Tensor, key: Tensor) -> tuple[int, int]:
    """How many heads of queries and keys the first dimension of three holds, beside examples; 1 where it may be either.

    Only methods that tell heads apart need to know. Raises ValueError if the module says that there are others.
    """
    settings = settings_of(module)
    method = settings and settings.method
    if (
        query.dim() != 3
        or key.dim() != 3
        or not (isinstance(method, PerHead) or (method and method.has_parameters))
    ):
        return 1, 1
    assert settings is not None
    heads, groups, _ = settings.host.shape(module)
    if len(query) % heads or len(key) % groups or len(query) // heads != len(key) // groups:
        raise ValueError(
            f"{settings.name}: {type(module).__name__} says that it has {heads} heads, which queries of the shape "
            f"{tuple(query.shape)} do not"
        )
    return heads, groups


def _batched(states: Tensor, heads: int) -> Tensor:
    """(B, H, n, D) of states (…, n, D), of which three dimensions have so many heads in the first."""
    if states.dim() > 4:
        return states.flatten(0, -4)
    if states.dim() == 4:
        return states
    return states[None, None] if states.dim() == 2 else states.unflatten(0, (-1, heads))


def _of_batch(mask: Tensor, query: Tensor, heads: int) -> Tensor:
    """A mask that broadcasts to the scores of these queries (…, L, D), as one that does to (B, H, L, S)."""
    if query.dim() > 4:
        return mask.expand(*query.shape[:-2], *mask.shape[-2:]).flatten(0, -4)
    if query.dim() == 4 or mask.dim() < 3:
        return mask[(None,) * (4 - mask.dim())]
    return mask[:, None] if len(mask) == 1 else mask.unflatten(0, (-1, heads))


def multi_head(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `multi_head_attention_forward` is called with, by the module's method.

    States (length, batch, width) or (length, width), masks True or minus infinity where nothing is seen, as there.
    """
    if stays_dense(module, query.shape[0], key.shape[0]):
        return MULTIHEAD(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, need_weights,
            attn_mask, use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v,
            average_attn_weights, is_causal,
        )  # fmt: skip
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "is_causal of nn.MultiheadAttention is a hint at its attn_mask, which is needed too"
        )
    if query.shape[-1] != embed_dim_to_check:
        raise ValueError(f"expected queries of width {embed_dim_to_check}, got {query.shape[-1]}")
    if static_k is not None or static_v is not None:
        raise NotImplementedError("static_k and static_v of multi_head_attention_forward are not handled")
    alone = query.dim() == 2
    if alone:
        query, key, value = (each[:, None] for each in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    if use_separate_proj_weight:
        weights_of = [each for each in (q_proj_weight, k_proj_weight, v_proj_weight) if each is not None]
    else:
        weights_of = [] if in_proj_weight is None else list(in_proj_weight.chunk(3))
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    projected = [
        linear(states, weight, bias)
        for states, weight, bias in zip((query, key, value), weights_of, biases, strict=True)
    ]
    extra = 0
    if bias_k is not None and bias_v is not None:
        batch = query.shape[1]
        projected[1:] = [
            torch.cat([states, more.expand(1, batch, -1)])
            for states, more in zip(projected[1:], (bias_k, bias_v), strict=True)
        ]
        extra += 1
    if add_zero_attn:
        projected[1:] = [pad(states, (0, 0, 0, 0, 0, 1)) for states in projected[1:]]
        extra += 1
    states = [each.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for each in projected]
    valid, bias = _masks(attn_mask, key_padding_mask, states[0], extra)
    output, weights = attend(
        module,
        *states,
        valid=valid,
        bias=bias,
        dropout=dropout_p if training else 0.0,
        weights=need_weights,
    )
    output = linear(output.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if alone:
        output, weights = output[:, 0], None if weights is None else weights[0]
    return output, weights if need_weights else None


def _masks(
    mask: Tensor | None, padding: Tensor | None, query: Tensor, extra: int
) -> tuple[Tensor | None, Tensor | None]:
    """Valid pairs and bias of nn.MultiheadAttention's masks; `extra` keys behind the others are seen by all."""
    valid = bias = None
    if mask is not None:
        batch, heads = query.shape[:2]
        mask = mask.unflatten(0, (batch, heads)) if mask.dim() == 3 else mask[None, None]
        valid, bias = (~mask, None) if mask.dtype == torch.bool else split_mask(mask)
    if padding is not None:
        seen, more = (~padding, None) if padding.dtype == torch.bool else split_mask(padding)
        assert seen is not None
        seen = seen[:, None, None]
        valid = seen if valid is None else valid & seen
        if more is not None:
            bias = more[:, None, None] if bias is None else bias + more[:, None, None]
    if extra:
        valid = None if valid is None else pad(valid, (0, extra), value=True)
        bias = None if bias is None else pad(bias, (0, extra))
    return valid, bias
