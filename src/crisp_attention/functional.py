"""`crisp.attention`: one sparse attention call, shaped like torch's scaled_dot_product_attention."""

import numpy as np
import torch
from torch import Tensor

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import AnyMethod, as_method
from crisp_attention.methods.pairs import split_mask

NUMBERS = (int, float, np.number, torch.SymInt, torch.SymFloat)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: AnyMethod | PerHead,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of `query` over `key` and `value` in which each query keeps what `method` keeps.

    The arguments after `method` are those of `torch.nn.functional.scaled_dot_product_attention`, with which `Dense()`
    agrees.

    Parameters
    ----------
    query, key, value
        Of shapes (B, H, L, D), (B, G, S, D) and (B, G, S, Dv), with H a multiple of G.
    method
        What a query keeps: a rule, a layout, a `Method`, or `PerHead` with one for every head.
    attn_mask
        Broadcasts to (B, H, L, S), bool (True = attend) or additive, where entries of -10,000 and below forbid the
        pair. Rows without a valid key give zeros.
    dropout_p
        The share of the kept weights that is set to 0, in [0, 1); the rest is scaled up.
    is_causal
        Forbids the keys j > i, aligned at the upper left. torch refuses it together with `attn_mask`; here a pair is
        valid if both allow it.
    scale
        The factor of the products of queries and keys, by default D ** -0.5.
    enable_gqa
        Has no effect: grouped heads (G < H) are always allowed here.
    generator
        The source of random keys and dropout, in every kernel; by default torch's global one. Not possible in a
        recorded program or under gradient checkpointing: a ValueError.
    backend
        The kernel to compute it with, by default the fastest that can.

    Returns
    -------
    Tensor
        Of shape (B, H, L, Dv), in the query's dtype.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, with expected and actual value.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = value = torch.ones(1, 2, 8, 4)
    >>> crisp.attention(query, key, value, crisp.TopK(sparsity=0.5), is_causal=True).shape
    torch.Size([1, 2, 8, 4])
    """
    method = method if isinstance(method, PerHead) else as_method(method)
    _check_types(query, key, value, attn_mask, is_causal, enable_gqa)
    _check_numbers(dropout_p, scale)
    _check(query, key, value, attn_mask)
    if isinstance(method, PerHead) and len(method.methods) != query.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, the method is for {len(method.methods)}")
    if attn_mask is not None:
        attn_mask = attn_mask.reshape(*[1] * (4 - attn_mask.ndim), *attn_mask.shape)
    valid, bias = split_mask(attn_mask, "attn_mask")
    if method.uses_positions and query.shape[2] > key.shape[2]:
        raise ValueError(
            f"{method.name!r} places queries among the keys and needs at most as many queries as keys, "
            f"got {query.shape[2]} queries and {key.shape[2]} keys"
        )
    if generator is not None:
        _check_generator(generator, draws=method.uses_seed or dropout_p > 0)
    call = Call(
        query,
        key,
        value,
        method,
        scale=max(1, query.shape[-1]) ** -0.5 if scale is None else scale,
        valid=valid,
        causal=is_causal,
        bias=bias,
        dropout=dropout_p,
        generator=generator,
    )
    return dispatch.attention(call.seeded(), backend)[0]


def _check_types(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value), ("attn_mask", attn_mask)):
        if tensor is None and name == "attn_mask":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != query.device:
            raise ValueError(f"{name} must be on {query.device}, where query is, got {tensor.device}")
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def _check_numbers(dropout_p: float, scale: float | None) -> None:
    # a tensor would be read once, as a number without a gradient
    for name, number in (("dropout_p", dropout_p), ("scale", 1.0 if scale is None else scale)):
        if not isinstance(number, NUMBERS):
            way = "; multiply query by a learned scale" if isinstance(number, Tensor) else ""
            raise TypeError(f"{name} must be a number, got {number!r}{way}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")


def _check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have shape (B, H, L, D), got {tuple(tensor.shape)}")
        if tensor.dtype != query.dtype or not tensor.is_floating_point():
            raise TypeError(
                f"query, key and value must share one floating dtype, got {query.dtype} and {tensor.dtype}"
            )
    batch, heads, queries, width = query.shape
    groups, keys = key.shape[1:3]
    if key.shape[0] != batch or key.shape[3] != width or keys == 0 or groups == 0 or heads % groups:
        raise ValueError(
            f"key must have shape ({batch}, G, S, {width}) with S > 0 and G dividing {heads}, "
            f"got {tuple(key.shape)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value must have shape ({batch}, {groups}, {keys}, Dv), got {tuple(value.shape)}")
    if attn_mask is not None:
        full, given = (batch, heads, queries, keys), attn_mask.shape
        if len(given) > 4 or any(m not in (1, f) for m, f in zip(given[::-1], full[::-1], strict=False)):
            raise ValueError(f"attn_mask must broadcast to {full}, got {tuple(given)}")


def _check_generator(generator: torch.Generator, *, draws: bool) -> None:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
    if draws and (torch.compiler.is_compiling() or dispatch.recorder() is not None):
        raise ValueError(
            f"generator cannot be part of a program made by {dispatch.recorder() or 'torch.compile'}; "
            "leave it out and seed torch's global one with torch.manual_seed"
        )
    if draws and torch._C._current_graph_task_id() != -1:  # what it drew before, it would not draw again
        raise ValueError(
            "generator cannot be drawn from during a backward pass, in which gradient checkpointing computes the "
            "forward pass again; leave it out and seed torch's global one with torch.manual_seed"
        )
