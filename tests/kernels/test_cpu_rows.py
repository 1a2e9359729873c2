"""What the CPU's row kernel keeps of rows of every kind is what the reference keeps."""

import pytest
import torch
from torch import Tensor

from crisp_attention import TopK, TopP
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method
from tests.cases import normal

KEYS = 203
DRAWN = normal(24, KEYS, seed=4)
ROWS = {
    "normal": DRAWN,
    "quantised": (DRAWN * 4).round() / 4,
    "two values": (DRAWN > 0.6).double(),
    "one outlier": DRAWN.index_fill(1, torch.tensor([3]), 400.0),
    "one far below": DRAWN.index_fill(1, torch.tensor([3]), -400.0),
    "heavy tails": DRAWN * normal(24, KEYS, seed=5) ** 5,
    "two clusters": DRAWN / 256 + 16 * (normal(24, KEYS, seed=6) > 0),
    "nearly equal": 1 + DRAWN * 2.0**-22,
    "rising": torch.arange(KEYS).expand(24, -1).double(),
}
RULES = {
    str(rule): rule
    for rule in (TopK(0.8), TopK(0.5), TopK(keep=1), TopK(keep=202), TopP(0.01), TopP(0.3), TopP(0.9))
}


def call_of(scores: Tensor, rule, **more) -> Call:
    """A call with these scores (L, S), exactly, whose output is the weights."""
    length, keys = scores.shape
    scores = scores / max(1.0, float(scores.abs().max()) / 40)  # so that no weight is rounded to 0
    query = torch.eye(length)[None, None]
    return Call(
        query,
        scores.float().T[None, None].contiguous(),
        torch.eye(keys)[None, None],
        as_method(rule),
        1.0,
        **more,
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("mask", ["none", "causal", "padded", "any"])
def test_the_same_keys_are_kept_of_rows_of_every_kind(rule, kind, mask) -> None:
    seen = {"padded": torch.arange(KEYS) >= 61, "any": normal(24, KEYS, seed=7) > 0}
    more = {"valid": seen[mask][None, None]} if mask in seen else {"causal": mask == "causal"}
    call = call_of(ROWS[kind], rule, **more)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    found = dispatch.attention(call, "cpu")[0]
    assert (found > 0).equal(wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
