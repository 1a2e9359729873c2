"""Scores that are not finite mean the same on every kernel, and none of them hangs on one."""

from functools import cache

import pytest
import torch
from torch import Tensor

from crisp_attention import BlockTopK, Full, Method, NofM
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.testing.calls import METHODS as EVERY_METHOD
from tests import oracle

KEYS, REAL = 32, 25
LARGE = 2.0**100  # whose square is infinite in float32, and not in float64
ROWS = {
    "-inf once": [-LARGE],
    "-inf often": [-LARGE] * 9,
    "-inf but for one": [-LARGE] * (REAL - 1),
    "-inf alone": [-LARGE] * KEYS,
    "+inf once": [LARGE],
    "+inf thrice": [LARGE] * 3,
    "+inf alone": [LARGE] * KEYS,
    "both": [LARGE, -LARGE],
    "NaN": [torch.nan],
    "NaN alone": [torch.nan] * KEYS,
    "all three": [torch.nan, LARGE, -LARGE],
}
MASKS = {"causal": {"causal": True}, "padded": {"valid": (torch.arange(KEYS) < REAL)[None, None, None]}}
# random keys are drawn, learned parameters need a module, and what a fixed pattern shows is another matter
METHODS = {
    name: method
    for name, method in EVERY_METHOD.items()
    if isinstance(method.layout, Full | BlockTopK) and not (method.has_parameters or "random" in name)
} | {
    "nofm, 2 of 3": Method(rule=NofM(2, 3)),
    "block_topk, 16+nofm": Method(BlockTopK(0.5, block_size=16), NofM(1, 4)),
}
SLOW = [] if torch.cuda.is_available() else ["triton"]
# every kernel but torch's own, with every method under one mask or the other, in turn; under a causal one, a query that
# sees nothing but finite scores ranks its blocks by them
IN_TURN = pytest.mark.parametrize(
    ("kernel", "name", "mask"),
    [
        pytest.param(kernel, name, mask, marks=[pytest.mark.slow] * (kernel in SLOW))
        for i, kernel in enumerate([*(each for each in KERNELS if each != "sdpa"), dispatch.REFERENCE])
        for j, (name, method) in enumerate(METHODS.items())
        for mask in ["padded" if method.block_size or (i + j) % 2 else "causal"]
    ],
)
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def a_call(method: Method, row: str, mask: str) -> Call:
    """All queries alike; scores are whole eighths but for those of `row`, at places drawn among the real ones."""
    # means of keys overflow where single ones do not, and the other way round: blocks are given what is infinite
    large = torch.inf if method.block_size else LARGE
    unit = 1.0 if method.block_size else LARGE
    bad, generator = torch.tensor(ROWS[row]), torch.Generator().manual_seed(len(ROWS[row]))
    scores = torch.randint(-16, 17, (KEYS,), generator=generator) / 8 / unit
    places = torch.cat([torch.randperm(REAL, generator=generator), torch.arange(REAL, KEYS)])
    scores[places[: len(bad)]] = bad * (large / LARGE)
    query, key = torch.zeros(2, 1, 1, KEYS, 16).unbind()
    query[..., 0], key[..., 0] = unit, scores
    return Call(query, key, torch.eye(KEYS)[None, None], method, scale=1.0, **MASKS[mask])


@cache
def meant(name: str, row: str, mask: str) -> tuple[Tensor, Tensor]:
    """Weights (L, S) in float64, and which rows (L,) have none that are numbers."""
    method = METHODS[name]
    if isinstance(method.layout, BlockTopK):  # whoever ranks what is not finite sees all
        method = Method(rule=method.rule)
    call = a_call(method, row, mask)
    rows = slice(None) if call.causal else slice(1)  # without a causal mask all are alike
    seen = call.rows.valid.expand(1, 1, KEYS, KEYS)[:, :, rows]
    scores = (call.query.double() @ call.key.double().mT)[:, :, rows]
    top = scores.nan_to_num(nan=torch.inf).masked_fill(~seen, -torch.inf).amax(dim=-1)
    broken = top.abs() > torch.finfo(torch.float32).max
    key = call.key.nan_to_num().clamp(
        *(each / call.query.max() for each in (-1000, 1000))
    )  # e ** -1000 is 0 as well
    weights, _ = oracle.attention(call.query[:, :, rows], key, call.value, method, scale=1.0, valid=seen)
    return weights[0, 0].expand(KEYS, -1), broken[0, 0].expand(KEYS)


@IN_TURN
def test_minus_infinity_is_a_key_of_no_weight_and_larger_is_nan(kernel, name, mask) -> None:
    method = METHODS[name]
    for row in ROWS:
        call = a_call(method, row, mask)
        if dispatch.lacks(kernel, call) is not None:
            return
        weights, broken = meant(name, row, mask)
        leaves = [each.requires_grad_() for each in (call.query, call.key, call.value)]
        if lacking := dispatch.lacks(kernel, call):
            assert "gradients" in lacking
            leaves = [each.requires_grad_(False) for each in leaves]
        output, _ = dispatch.attention(call, kernel)
        real = slice(REAL) if method.block_size else slice(None)  # blocks give padded queries what they like
        sound = ~broken[real]
        found = output.detach()[0, 0, real].double()
        assert found.isnan().any(dim=-1).equal(broken[real]), row
        assert torch.allclose(found[sound], weights[real][sound], rtol=1e-5, atol=1e-6), row
        if kernel != dispatch.REFERENCE and output.requires_grad and call.key.isfinite().all():
            (slope,) = torch.autograd.grad(output[:, :, real].sum(), leaves[:1])
            assert slope[0, 0, real].isnan().any(dim=-1).equal(broken[real]), row
