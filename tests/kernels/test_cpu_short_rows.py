"""Rows so short that sixteen thresholds are searched at once: the CPU kernel keeps what the reference keeps."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import TopK
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.methods.method import as_method
from tests.cases import normal
from tests.kernels.test_cpu_long_rows import ROWS

LONGEST = 224
VALUES = torch.eye(LONGEST)


@settings(deadline=None)
@given(
    kind=st.sampled_from(list(ROWS)),
    keys=st.integers(1, LONGEST),
    queries=st.integers(1, 2 * LANES + 3),
    rule=st.one_of(st.floats(0, 0.99).map(TopK), st.integers(1, LONGEST).map(lambda keep: TopK(keep=keep))),
    mask=st.sampled_from(["none", "causal", "any", "padding", "causal and padding"]),
    seed=st.integers(0, 50),
)
def test_the_same_keys_are_kept_of_rows_of_every_kind(kind, keys, queries, rule, mask, seed) -> None:
    whole = torch.cat([ROWS[kind]] * 3)[:queries].float()
    start = 7 * seed % (whole.shape[1] - LONGEST)
    scores = whole[:, start : start + keys].contiguous()
    valid = (normal(queries, keys, seed=seed) > -1)[None, None] if mask == "any" else None
    call = Call(
        torch.eye(queries)[None, None],
        scores.T[None, None].contiguous(),
        VALUES[None, None, :keys, :keys].contiguous(),
        as_method(rule),
        1.0,
        valid=valid,
        causal="causal" in mask,
        span=torch.tensor([[seed % keys, keys - seed % 3]]) if "padding" in mask else None,
    )
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    assert (found > 0).equal(wanted > 0)
    torch.testing.assert_close(found, wanted)


@settings(deadline=None)
@given(
    keys=st.integers(1, LONGEST),
    spoilt=st.sampled_from([torch.nan, torch.inf, -torch.inf, 3e38, -3e38]),
    seed=st.integers(0, 50),
)
def test_a_key_that_is_not_finite_spoils_the_same_rows(keys, spoilt, seed) -> None:
    query, key = normal(20, 4, seed=seed).float(), normal(keys, 4, seed=seed + 1).float()
    key[seed % keys, 0] = spoilt
    value = normal(keys, 4, seed=seed + 2).float()
    call = Call(query[None, None], key[None, None], value[None, None], as_method(TopK(0.8)), 1.0)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)
