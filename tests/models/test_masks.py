"""What transformers' masks become: an encoder's says the same to all queries, and costs one row."""

import pytest
import torch
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

import crisp_attention as crisp
from crisp_attention.models.transformers.attention import crisp_mask
from tests.models.tiny import distilbert

MASK = torch.ones(2, 40, dtype=torch.bool)
MASK[1, 27:] = False


@pytest.mark.parametrize("function", [bidirectional_mask_function, causal_mask_function])
def test_it_says_what_transformers_says(function) -> None:
    options = {"batch_size": 2, "q_length": 40, "kv_length": 40, "mask_function": function}
    found = crisp_mask(**options, attention_mask=MASK)
    assert found.equal(sdpa_mask(**options, attention_mask=MASK, allow_is_causal_skip=False))
    assert (found.stride(2) == 0) == (function is bidirectional_mask_function)


def test_no_mask_where_transformers_needs_none() -> None:
    options = {"batch_size": 2, "q_length": 40, "kv_length": 40, "mask_function": bidirectional_mask_function}
    assert crisp_mask(**options, allow_is_bidirectional_skip=True) is None


def test_blocks_of_a_padded_batch_take_the_fast_kernel() -> None:
    model, ids = distilbert(), torch.arange(80).reshape(2, 40) % 32
    exact = crisp.sparsify(model, crisp.BlockTopK(0.5, block_size=16), backend="reference")(ids, MASK.long())
    crisp.restore(model)
    crisp.sparsify(model, crisp.BlockTopK(0.5, block_size=16), backend="cpu")
    torch.testing.assert_close(model(ids, MASK.long()).logits, exact.logits, rtol=1e-5, atol=1e-6)
