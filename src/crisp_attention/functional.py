"""`crisp.attention`: one sparse attention call, shaped like torch's scaled_dot_product_attention."""

import torch
from torch import Tensor

from crisp_attention.heads import PerHead
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods import AnyMethod, as_method
from crisp_attention.pairs import split_mask


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: AnyMethod | PerHead,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
    *,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of `query` over `key` and `value` in which each query keeps what `method` keeps.

    Shapes: query (B, H, L, D), key (B, G, S, D), value (B, G, S, Dv) with H a multiple of G;
    returns (B, H, L, Dv) in the query's dtype. `mask` broadcasts to (B, H, L, S), bool (True =
    attend) or additive; `is_causal` aligns at the upper left, as in torch, and combines with
    `mask`. `scale` defaults to D ** -0.5. `generator` (default: torch's global one) feeds `RandomK`.
    `backend` names the kernel to compute it with, by default the fastest that can.
    Raises TypeError or ValueError naming the argument, with expected and actual value.
    """
    method = method if isinstance(method, PerHead) else as_method(method)
    _check(query, key, value, mask, dropout)
    if isinstance(method, PerHead) and len(method.methods) != query.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, the method is for {len(method.methods)}")
    if mask is not None:
        mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)
    valid, bias = split_mask(mask)
    if method.uses_positions and query.shape[2] > key.shape[2]:
        raise ValueError(
            f"{method.name!r} places queries among the keys and needs at most as many queries as keys, "
            f"got {query.shape[2]} queries and {key.shape[2]} keys"
        )
    seed = None
    if method.uses_seed:
        home = query.device if generator is None else generator.device
        seed = torch.randint(2**31, (), generator=generator, device=home).to(query.device)
    call = Call(
        query,
        key,
        value,
        method,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        valid=valid,
        causal=is_causal,
        bias=bias,
        dropout=dropout,
        seed=seed,
    )
    return dispatch.attention(call, backend)[0]


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> None:
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
    if mask is not None:
        full = (batch, heads, queries, keys)
        if mask.ndim > 4 or any(m not in (1, f) for m, f in zip(mask.shape[::-1], full[::-1], strict=False)):
            raise ValueError(f"mask must broadcast to {full}, got {tuple(mask.shape)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
