"""The kernels over blocks as operators of torch, which autograd and torch.compile see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.lightest import lightest, node_of
from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.triton_blocks import AHEAD
from crisp_attention.kernels.triton_blocks.passes import attend, key_gradients, key_sums, query_gradients
from crisp_attention.kernels.triton_choices import lists
from crisp_attention.kernels.warps import warps_for


@dataclass(frozen=True)
class Pairs:
    """Which pairs count: `seen` or `band` says which tiles do, `picked` and the others which pairs of these.

    `seen` is bool (B, H, m, n); `spans` (B, 2) int32 of each example the first real token and the one after the last;
    `picked` uint8 (B, H, L, n) which blocks each query sees, of those counted from the first real token; `band` the
    numbers of `Band.numbers`; `first` the position of the first query.
    """

    seen: Tensor | None
    spans: Tensor | None
    picked: Tensor | None
    band: Sequence[int] | None
    causal: bool
    first: int


def forward_now(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    marginal: Tensor | None,
    spans: Tensor | None,
    picked: Tensor | None,
    seed: Tensor | None,
    band: Sequence[int] | None,
    causal: bool,
    first: int,
    scale: float,
    block_size: int,
    feature_map: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax attention to what `Pairs` describes and linear attention to the marginal blocks, (B, H, L, Dv) each.

    Also the log-sum-exp of every row, to the base of 2, and what it weighs in the linear part, (B, H, L) float32.
    `marginal` is bool (B, H, n, n); without it what is linear is empty. `seed` () starts the dropout of the weights.
    """
    query, key, value = map(by_rows, (query, key, value))
    output, linear, tops, weighed = _empty(query, value, marginal)
    pairs = Pairs(seen, spans, picked, band, causal, first)
    common = _common(query, key, value, pairs, marginal, seed, scale, block_size, feature_map, dropout)
    counts, blocks = _listed(seen)
    with torch.cuda.device_of(query):
        chosen, chosen_weights = _chosen(key, value, marginal, common)
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
            **common,
        )
    return output, linear, tops, weighed


forward = torch.library.custom_op("crisp::triton_blocks", forward_now, mutates_args=())


def backward_now(
    given: Tensor,
    given_linear: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    marginal: Tensor | None,
    spans: Tensor | None,
    picked: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    linear: Tensor,
    tops: Tensor,
    weighed: Tensor,
    band: Sequence[int] | None,
    causal: bool,
    first: int,
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
    tops, weighed = tops.contiguous(), weighed.contiguous()
    pairs = Pairs(seen, spans, picked, band, causal, first)
    d_query, d_key, d_value = _empty_gradients(query, key, value, spans)
    common = _common(query, key, value, pairs, marginal, seed, scale, block_size, feature_map, dropout)
    slopes, slope_weights = _states(query, value, marginal)
    means = torch.empty_like(tops)
    counts, blocks = _listed(seen)
    common |= {"query": query, "q_strides": query.stride(), "given": given, "g_strides": given.stride()}
    common |= {"tops": tops, "means": means}
    with torch.cuda.device_of(query):
        chosen, chosen_weights = _chosen(key, value, marginal, common)
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
        seeing_counts, seeing = _listed(None if seen is None else seen.transpose(-1, -2))
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


backward = torch.library.custom_op("crisp::triton_blocks_backward", backward_now, mutates_args=())


@forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, marginal: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    return _empty(query, value, marginal)


@backward.register_fake
def _(
    given: Tensor, given_linear: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return _empty_gradients(query, key, value, None)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.numbers = inputs[8:]


def _differentiate(ctx: Any, given: Tensor, given_linear: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    run = lightest(backward_now, backward, [each for each in (given, *saved) if each is not None])
    return *run(given, given_linear, *saved, *ctx.numbers), *[None] * 12


forward.register_autograd(_differentiate, setup_context=_remember)
backward.register_autograd(refuse_second("triton_blocks"))
node = node_of(forward_now, _remember, _differentiate)


def _empty(query: Tensor, value: Tensor, marginal: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output = query.new_empty(*query.shape[:3], value.shape[3])
    per_row = query.new_empty(query.shape[:3], dtype=torch.float32)
    if marginal is None:
        return output, output.new_empty(0, 0, 0, 0), per_row, per_row.new_empty(0, 0, 0)
    return output, torch.empty_like(output), per_row, torch.empty_like(per_row)


def _empty_gradients(query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None) -> tuple[Tensor, ...]:
    # no block of keys has those outside of a span
    keys = (
        each.new_empty(each.shape) if spans is None else each.new_zeros(each.shape) for each in (key, value)
    )
    return query.new_empty(query.shape), *keys


def options(dtype: torch.dtype, size: int, width: int) -> dict[str, Any]:
    """The options for Triton's compiler, for blocks of `size` tokens and heads of this width."""
    warps = warps_for(dtype, size * max(size, width))
    ahead = dtype != torch.float32 and width <= AHEAD  # shared memory does not hold two stages of more
    return {"num_warps": warps, "num_stages": 2 if ahead else 1}


def _listed(seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if seen is None else lists(seen)


def _programs(states: Tensor, block_size: int) -> int:
    return triton.cdiv(states.shape[2], block_size) * states.shape[0] * states.shape[1]


def _common(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pairs: Pairs,
    marginal: Tensor | None,
    seed: Tensor | None,
    scale: float,
    block_size: int,
    feature_map: int,
    dropout: float,
) -> dict[str, Any]:
    queries, keys = query.shape[2], key.shape[2]
    reach, dilation, local, anchors = pairs.band or (0, 1, 0, 0)
    partly = pairs.causal or pairs.band is not None or pairs.picked is not None or pairs.spans is not None
    return {
        "key": key,
        "value": value,
        "spans": None if pairs.spans is None else pairs.spans.contiguous(),
        "picked": None if pairs.picked is None else pairs.picked.contiguous(),
        "k_strides": key.stride(),
        "v_strides": value.stride(),
        "query_tiles": triton.cdiv(queries, block_size),
        "key_tiles": triton.cdiv(keys, block_size),
        "shared": query.shape[1] // key.shape[1],
        "queries": queries,
        "keys": keys,
        "first": pairs.first,
        "scale": scale,
        "reach": reach,
        "dilation": dilation,
        "local": local,
        "anchors": anchors,
        "seed": seed,
        "dropout": dropout,
        "dropout_scale": 1 / (1 - dropout),
        "EVEN": not partly and queries == keys and keys % block_size == 0,
        "SPANS": pairs.spans is not None,
        "CAUSAL": pairs.causal,
        "BAND": pairs.band is not None,
        "PICKED": pairs.picked is not None,
        "DROPOUT": seed is not None,
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
    own = {name: common[name] for name in (*key_sums.arg_names, "num_warps", "num_stages") if name in common}
    key_sums[(_programs(key, common["SIZE"]),)](
        **own | {"sums": sums, "weights": weights, "heads": key.shape[1]}
    )
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
