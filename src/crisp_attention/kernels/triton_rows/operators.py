"""The kernels as operators of torch, which autograd and torch.compile see."""

from typing import Any

import torch
import triton
from torch import Tensor

from crisp_attention.kernels.derivatives import refuse_second
from crisp_attention.kernels.lightest import lightest, node_of
from crisp_attention.kernels.memory import by_rows
from crisp_attention.kernels.triton_rows.candidates import CANDIDATES
from crisp_attention.kernels.triton_rows.passes import (
    THRESHOLD,
    TOPK,
    TOPP,
    attend,
    find_cuts,
    key_gradients,
    query_gradients,
)
from crisp_attention.kernels.warps import warps_for

NARROW = 128  # heads up to which tiles are as large as they get
RULES = {"topk": TOPK, "topp": TOPP, "threshold": THRESHOLD}


def forward_now(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    count_of: Tensor | None,
    seed: Tensor | None,
    rule: str,
    number: float,
    scale: float,
    causal: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv); and of every row sum, largest score, threshold and last tied key, (B, H, L).

    `valid` has the full shape (B, H, L, S), with strides of 0 where it was broadcast; `count_of` (S + 1,)
    holds the k of a row that sees n keys; `seed` () starts the dropout.
    """
    query, key, value = map(by_rows, (query, key, value))
    output, sums, tops, cuts, lasts = _empty(query, value)
    tiles, common = _common(query, key, value, valid, scale, causal)
    grid = (tiles * query.shape[0] * query.shape[1],)
    with torch.cuda.device_of(query):
        find_cuts[grid](
            query=query,
            key=key,
            count_of=count_of,
            candidates=None if count_of is None else sums.new_empty(*sums.shape, CANDIDATES.value),
            cuts=cuts,
            lasts=lasts,
            tops=tops,
            number=number,
            RULE=RULES[rule],
            **common,
        )
        attend[grid](
            query=query,
            key=key,
            cuts=cuts,
            lasts=lasts,
            tops=tops,
            output=output,
            sums=sums,
            o_strides=output.stride(),
            **common,
            **_with_values(value, seed, dropout),
        )
    return output, sums, tops, cuts, lasts


forward = torch.library.custom_op("crisp::triton_rows", forward_now, mutates_args=())


def backward_now(
    given: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    sums: Tensor,
    tops: Tensor,
    cuts: Tensor,
    lasts: Tensor,
    scale: float,
    causal: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output, `given`."""
    # what was saved need not come back as it was laid out: hooks of autograd and compilers may move it
    given, query, key, value, output = map(by_rows, (given, query, key, value, output))
    sums, tops, cuts, lasts = (each.contiguous() for each in (sums, tops, cuts, lasts))
    means = torch.empty_like(sums)
    d_query, d_key, d_value = _empty_gradients(query, key, value)
    tiles, common = _common(query, key, value, valid, scale, causal)
    common |= _with_values(value, seed, dropout)
    common |= {"query": query, "key": key, "given": given, "g_strides": given.stride()}
    common |= {"sums": sums, "tops": tops, "cuts": cuts, "lasts": lasts, "means": means}
    with torch.cuda.device_of(query):
        query_gradients[(tiles * query.shape[0] * query.shape[1],)](
            output=output,
            o_strides=output.stride(),
            d_query=d_query,
            dq_strides=d_query.stride(),
            **common,
        )
        del common["row_tiles"], common["heads"]
        tiles = triton.cdiv(key.shape[2], common["BLOCK_N"])
        key_gradients[(tiles * key.shape[0] * key.shape[1],)](
            d_key=d_key,
            d_value=d_value,
            dk_strides=d_key.stride(),
            dv_strides=d_value.stride(),
            key_tiles=tiles,
            groups=key.shape[1],
            **common,
        )
    return d_query, d_key, d_value


backward = torch.library.custom_op("crisp::triton_rows_backward", backward_now, mutates_args=())


@forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _empty(query, value)


@backward.register_fake
def _(given: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _empty_gradients(query, key, value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, valid, _, seed, _, _, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, value, valid, seed, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, given: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    run = lightest(backward_now, backward, [each for each in (given, *saved) if each is not None])
    return *run(given, *saved, *ctx.numbers), *[None] * 8


forward.register_autograd(_differentiate, setup_context=_remember)
backward.register_autograd(refuse_second("triton"))
node = node_of(forward_now, _remember, _differentiate)


def _empty(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = query.shape[:3]
    sums, tops, cuts = (query.new_empty(rows, dtype=torch.float32) for _ in range(3))
    return query.new_empty(*rows, value.shape[3]), sums, tops, cuts, query.new_empty(rows, dtype=torch.int32)


def _empty_gradients(*states: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in states)


def block_size(dtype: torch.dtype, width: int) -> int:
    """Rows and columns of a tile, the same for every kernel: `tiles` says why."""
    usual = 32 if dtype == torch.float32 else 64
    return usual if width <= NARROW else usual // 2


def options(dtype: torch.dtype, width: int) -> dict[str, Any]:
    """The options for Triton's compiler, for heads of this width, keys or values, whichever are wider."""
    block = block_size(dtype, width)
    return {
        # score - largest in one rounding is not 0 where the score is the largest
        "enable_fp_fusion": False,
        # the search has several tiles of scores at a time
        "num_warps": warps_for(dtype, block * max(width, 2 * block)),
        "num_stages": 1 if dtype == torch.float32 else 2,
    }


def _common(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float, causal: bool
) -> tuple[int, dict[str, Any]]:
    width = max(_padded(query), _padded(value))
    block = block_size(query.dtype, width)
    tiles = triton.cdiv(query.shape[2], block)
    return tiles, {
        "valid": None if valid is None else valid.view(torch.uint8),
        "q_strides": query.stride(),
        "k_strides": key.stride(),
        "valid_strides": (0, 0, 0, 0) if valid is None else valid.stride(),
        "row_tiles": tiles,
        "heads": query.shape[1],
        "shared": query.shape[1] // key.shape[1],
        "queries": query.shape[2],
        "keys": key.shape[2],
        "width": query.shape[3],
        "scale": scale,
        "MASKED": valid is not None,
        "CAUSAL": causal,
        "BLOCK_M": block,
        "BLOCK_N": block,
        "WIDTH": _padded(query),
        **options(query.dtype, width),
    }


def _with_values(value: Tensor, seed: Tensor | None, dropout: float) -> dict[str, Any]:
    return {
        "value": value,
        "v_strides": value.stride(),
        "value_width": value.shape[3],
        "seed": seed,
        "dropout": dropout,
        "dropout_scale": 1 / (1 - dropout),
        "DROPOUT": seed is not None,
        "VALUE_WIDTH": _padded(value),
    }


def _padded(states: Tensor) -> int:
    # the least that a matrix product on tensor cores takes
    return max(16, triton.next_power_of_2(states.shape[3]))
