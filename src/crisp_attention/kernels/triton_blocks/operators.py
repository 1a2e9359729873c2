"""The kernels over blocks as operators of torch, which autograd and torch.compile see."""

from typing import Any

import torch
import triton
from torch import Tensor

from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.triton_blocks.passes import attend, key_gradients, key_sums, query_gradients
from crisp_attention.kernels.warps import warps_for
from crisp_attention.methods.blocks import listed


@torch.library.custom_op("crisp::triton_blocks", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    marginal: Tensor | None,
    lengths: Tensor,
    seed: Tensor | None,
    scale: float,
    block_size: int,
    feature_map: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax attention to the seen blocks and linear attention to the marginal ones, (B, H, L, Dv) each.

    Also the log-sum-exp of every row and what it weighs in the linear part, (B, H, L) float32. `seen` and `marginal`
    are bool (B, H, n, n); without the latter what is linear is empty. `lengths` (B,) int32 are the real tokens, the
    first ones. `seed` () starts the dropout of the softmax weights.
    """
    query, key, value = map(by_rows, (query, key, value))
    lengths = lengths.contiguous()
    output, linear, tops, weighed = _empty(query, value, marginal)
    counts, blocks = _listed(seen)
    common = _common(query, key, value, lengths, scale, block_size, feature_map, marginal)
    chosen, chosen_weights = _chosen(key, value, marginal, common)
    with torch.cuda.device_of(query):
        attend[(_programs(query, block_size),)](
            query=query,
            blocks=blocks,
            counts=counts,
            chosen=chosen,
            chosen_weights=chosen_weights,
            output=output,
            linear=linear,
            tops=tops,
            weighed=weighed,
            q_strides=query.stride(),
            o_strides=output.stride(),
            l_strides=linear.stride(),
            heads=query.shape[1],
            shared=query.shape[1] // key.shape[1],
            **common,
            **_dropping(seed, dropout),
        )
    return output, linear, tops, weighed


@torch.library.custom_op("crisp::triton_blocks_backward", mutates_args=())
def backward(
    given: Tensor,
    given_linear: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    marginal: Tensor | None,
    lengths: Tensor,
    seed: Tensor | None,
    output: Tensor,
    linear: Tensor,
    tops: Tensor,
    weighed: Tensor,
    scale: float,
    block_size: int,
    feature_map: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from those of both outputs."""
    # what was saved need not come back as it was laid out: hooks of autograd and compilers may move it
    given, given_linear, query, key, value, output, linear = map(
        by_rows, (given, given_linear, query, key, value, output, linear)
    )
    tops, weighed, lengths = tops.contiguous(), weighed.contiguous(), lengths.contiguous()
    d_query, d_key, d_value = _empty_gradients(query, key, value)
    counts, blocks = _listed(seen)
    common = _common(query, key, value, lengths, scale, block_size, feature_map, marginal)
    chosen, chosen_weights = _chosen(key, value, marginal, common)
    slopes, slope_weights = _states(query, value, marginal)
    means = torch.empty_like(tops)
    shared = query.shape[1] // key.shape[1]
    common |= {"query": query, "q_strides": query.stride(), "given": given, "g_strides": given.stride()}
    common |= {"tops": tops, "means": means, "shared": shared} | _dropping(seed, dropout)
    with torch.cuda.device_of(query):
        query_gradients[(_programs(query, block_size),)](
            blocks=blocks,
            counts=counts,
            chosen=chosen,
            chosen_weights=chosen_weights,
            output=output,
            linear=linear,
            weighed=weighed,
            given_linear=given_linear,
            slopes=slopes,
            slope_weights=slope_weights,
            d_query=d_query,
            o_strides=output.stride(),
            l_strides=linear.stride(),
            gl_strides=given_linear.stride(),
            dq_strides=d_query.stride(),
            heads=query.shape[1],
            **common,
        )
        seeing_counts, seeing = _listed(seen.transpose(-1, -2))
        if marginal is not None and slopes is not None and slope_weights is not None:
            back = _by_groups(marginal, key.shape[1]).transpose(-1, -2)
            slopes, slope_weights = (
                _added(back, slopes, key.shape[1]),
                _added(back, slope_weights, key.shape[1]),
            )
        key_gradients[(_programs(key, block_size),)](
            seeing=seeing,
            seeing_counts=seeing_counts,
            slopes=slopes,
            slope_weights=slope_weights,
            d_key=d_key,
            d_value=d_value,
            dk_strides=d_key.stride(),
            dv_strides=d_value.stride(),
            groups=key.shape[1],
            **common,
        )
    return d_query, d_key, d_value


@forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, marginal: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    return _empty(query, value, marginal)


@backward.register_fake
def _(
    given: Tensor, given_linear: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return _empty_gradients(query, key, value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.numbers = inputs[7:]


def _differentiate(ctx: Any, given: Tensor, given_linear: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *backward(given, given_linear, *ctx.saved_tensors, *ctx.numbers), *[None] * 8


forward.register_autograd(_differentiate, setup_context=_remember)
backward.register_autograd(refuse_second("triton_blocks"))


def _empty(query: Tensor, value: Tensor, marginal: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output = query.new_empty(*query.shape[:3], value.shape[3])
    per_row = query.new_empty(query.shape[:3], dtype=torch.float32)
    if marginal is None:
        return output, output.new_empty(0, 0, 0, 0), per_row, per_row.new_empty(0, 0, 0)
    return output, torch.empty_like(output), per_row, torch.empty_like(per_row)


def _empty_gradients(*states: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in states)


def options(dtype: torch.dtype, size: int, width: int) -> dict[str, Any]:
    """The options for Triton's compiler, for blocks of `size` tokens and heads of this width."""
    warps = warps_for(dtype, size * max(size, width))
    return {"num_warps": warps, "num_stages": 1 if dtype == torch.float32 else 2}


def _dropping(seed: Tensor | None, dropout: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "dropout": dropout,
        "dropout_scale": 1 / (1 - dropout),
        "DROPOUT": seed is not None,
    }


def _listed(seen: Tensor) -> tuple[Tensor, Tensor]:
    counts, blocks = listed(seen)
    return counts.contiguous(), blocks.contiguous()


def _programs(states: Tensor, block_size: int) -> int:
    return triton.cdiv(states.shape[2], block_size) * states.shape[0] * states.shape[1]


def _common(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float,
    block_size: int,
    feature_map: int,
    marginal: Tensor | None,
) -> dict[str, Any]:
    return {
        "key": key,
        "value": value,
        "lengths": lengths,
        "k_strides": key.stride(),
        "v_strides": value.stride(),
        "row_tiles": triton.cdiv(query.shape[2], block_size),
        "tokens": query.shape[2],
        "scale": scale,
        "LINEAR": marginal is not None,
        "MAP": feature_map,
        "SIZE": block_size,
        "WIDTH": query.shape[3],
        "VALUE_WIDTH": value.shape[3],
        **options(query.dtype, block_size, max(query.shape[3], value.shape[3])),
    }


def _states(query: Tensor, value: Tensor, marginal: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Room for the sums of every block of `query`: their values (B, H, n, D, Dv), and their weights (B, H, n, D)."""
    if marginal is None:
        return None, None
    # sums of many tokens may be beyond float16, and bfloat16 would lose bits that it has
    dtype = torch.bfloat16 if query.dtype == torch.bfloat16 else torch.float32
    shape = (*query.shape[:2], marginal.shape[-1], query.shape[3])
    return (
        query.new_empty(*shape, value.shape[3], dtype=dtype),
        query.new_empty(shape, dtype=torch.float32),
    )


def _chosen(
    key: Tensor, value: Tensor, marginal: Tensor | None, common: dict[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """What each block of queries chose: the sums over its marginal blocks, as `_states` are laid out."""
    sums, weights = _states(key, value, marginal)
    if marginal is None or sums is None or weights is None:
        return None, None
    own = {name: each for name, each in common.items() if name not in ("LINEAR", "scale")}
    with torch.cuda.device_of(key):
        key_sums[(_programs(key, common["SIZE"]),)](sums=sums, weights=weights, heads=key.shape[1], **own)
    chosen = _by_groups(marginal, key.shape[1])
    return _added(chosen, sums, key.shape[1]), _added(chosen, weights, key.shape[1])


def _by_groups(marginal: Tensor, groups: int) -> Tensor:
    """(B, H, n, n) as (B, G, shared · n, n)."""
    return marginal.unflatten(1, (groups, -1)).flatten(2, 3)


def _added(chosen: Tensor, sums: Tensor, groups: int) -> Tensor:
    """Sums of chosen blocks: (B, G, m, k) times (B, G · x, n, …) with k = x · n, as (B, G · m / n, n, …)."""
    blocks = sums.shape[2]
    flat = sums.unflatten(1, (groups, -1)).flatten(2, 3).flatten(3)
    found = chosen.to(sums.dtype) @ flat
    return found.unflatten(2, (-1, blocks)).flatten(1, 2).unflatten(3, sums.shape[3:])
