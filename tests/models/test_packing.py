"""Sequences packed in one row are computed as if each were alone."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, RandomK, TopK
from tests.contract.families import FIRST_TOKEN, VOCAB, available
from tests.contract.rows import in_turn, sparse
from tests.models.tiny import bart
from tests.table import ROWS

FAMILIES = {family.name: family for family in available()}
LENGTHS = (5, 9, 1, 7)
TOTAL = sum(LENGTHS)
FEATURES = [
    {
        "input_ids": torch.randint(
            FIRST_TOKEN, VOCAB, (n,), generator=torch.Generator().manual_seed(n)
        ).tolist()
    }
    for n in LENGTHS
]
POSITIONS, ENDS, NUMBERS = ("position_ids",), ("cu_seq_lens_q", "cu_seq_lens_k"), ("seq_idx",)
EVERYTHING = (*POSITIONS, *ENDS, "max_length_q", "max_length_k", *NUMBERS)
# what may say where a sequence begins; models with absolute positions need these besides
TOLD = {
    "llama": (POSITIONS, ENDS, NUMBERS, EVERYTHING),
    "bert": ((*POSITIONS, *ENDS), (*POSITIONS, *NUMBERS)),
    "mistral": (POSITIONS, ENDS),
    "gemma2": (POSITIONS, ENDS),
    "gpt2": (POSITIONS, (*POSITIONS, *ENDS)),
    "modernbert": (ENDS, (*POSITIONS, *NUMBERS)),
    "eurobert": (POSITIONS, ENDS),
}
CASES = [
    pytest.param(FAMILIES[name], row, id=f"{name}-{of}")
    for name in TOLD
    if name in FAMILIES
    for of, row in ROWS.items()
    if (name, of) in in_turn(TOLD) and row.causal
]


def packed(*names):
    """The batch that transformers' collator makes of all sequences, with these arguments only.

    Without a cache: where it makes one, transformers' masks know nothing of positions.
    """
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(FEATURES)
    return {"use_cache": False, **{name: batch[name] for name in ("input_ids", *names)}}


def alone():
    return [{"input_ids": torch.tensor([feature["input_ids"]])} for feature in FEATURES]


def outputs_and_gradients(model, batches):
    """Hidden states (tokens, width) of all batches, and the gradients of a weighted sum of them."""
    model.zero_grad()
    states = torch.cat([model(**batch).last_hidden_state.flatten(0, 1) for batch in batches])
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_rounding(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        scale = max(1.0, expected[1][name].abs().max().item())
        torch.testing.assert_close(
            gradient, expected[1][name], rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("family", "row"), CASES)
def test_packed_sequences_are_computed_as_if_each_were_alone(family, row) -> None:
    model = sparse(family.build(), row.method)
    expected = outputs_and_gradients(model, alone())
    for told in TOLD[family.name]:
        # these look at rotated queries and keys, so where a sequence begins must be said in positions as well
        looks = row.method.has_branch or row.method.layout.name in ("sparsefinder", "lsh", "routing")
        if "position_ids" in told or not looks:
            assert_equal_to_rounding(outputs_and_gradients(model, [packed(*told)]), expected)


@pytest.mark.parametrize("original", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_layers_that_drop_nothing_keep_sequences_apart_too(name, original) -> None:
    model = FAMILIES[name].build()
    model.set_attn_implementation(original)
    expected = outputs_and_gradients(model, alone())
    for method in (Dense(), TopK(0.0)):
        crisp.sparsify(model, method)
        for told in TOLD[name]:
            assert_equal_to_rounding(outputs_and_gradients(model, [packed(*told)]), expected)


def test_where_the_mask_says_it_already_the_lengths_change_no_bit() -> None:
    model = FAMILIES["llama"].build()
    own = model(**packed(*POSITIONS)).last_hidden_state
    for method in (TopK(0.0), TopK(0.5)):
        crisp.sparsify(model, method)
        with_mask, with_both = (model(**packed(*told)).last_hidden_state for told in (POSITIONS, EVERYTHING))
        assert torch.equal(with_both, with_mask)
        assert torch.equal(with_mask, own) == (method == TopK(0.0))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_lengths_go_on_from_row_to_row(name) -> None:
    model = crisp.sparsify(FAMILIES[name].build(), BlockTopK(0.5, block_size=2))
    one = packed(*POSITIONS, *ENDS)
    ends = one["cu_seq_lens_q"]
    ids = torch.cat([one["input_ids"], one["input_ids"].flip(-1)])
    both = torch.cat([ends, ends[1:] + TOTAL])
    positions = one["position_ids"].expand(2, -1)
    together = model(ids, position_ids=positions, cu_seq_lens_q=both, cu_seq_lens_k=both).last_hidden_state
    for row in range(2):
        single = model(ids[[row]], position_ids=positions[:1], cu_seq_lens_q=ends, cu_seq_lens_k=ends)
        torch.testing.assert_close(together[[row]], single.last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_what_is_measured_is_what_the_sequences_have(name) -> None:
    model = crisp.sparsify(FAMILIES[name].build(), TopK(0.5))
    with crisp.measuring(model) as together:
        model(**packed(*POSITIONS, *ENDS))
    with crisp.measuring(model) as apart:
        for batch in alone():
            model(**batch)
    found, expected = together.table(), apart.table()
    pairs = sum(n * (n + 1) // 2 if name == "llama" else n * n for n in LENGTHS)
    assert (found["valid_pairs"] == pairs).all()
    for column in ("valid_pairs", "sparsity", "kept_mass", "entropy"):
        torch.testing.assert_close(
            torch.tensor(found[column]), torch.tensor(expected[column]), rtol=1e-4, atol=1e-4
        )


def test_in_training_every_sequence_of_a_row_draws_random_keys_of_its_own() -> None:
    model = crisp.sparsify(FAMILIES["bert"].build(), RandomK(0.7)).train()
    twice = torch.arange(10, 30).repeat(1, 2)
    ends = torch.tensor([0, 20, 40], dtype=torch.int32)
    positions = torch.arange(20).repeat(1, 2)
    for said in ({"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}, {"seq_idx": (torch.arange(40) // 20)[None]}):
        seen = model(twice, position_ids=positions, output_attentions=True, **said).attentions[0][0] > 0
        first, second = seen[:, :20, :20], seen[:, 20:, 20:]
        assert not seen[:, :20, 20:].any()
        assert not seen[:, 20:, :20].any()
        assert not torch.equal(first, second)


def test_generation_with_a_cache_starts_after_a_packed_prompt_as_before() -> None:
    model = crisp.sparsify(FAMILIES["llama"].build(), TopK(0.5))
    ids = packed()["input_ids"]
    whole = model(ids).last_hidden_state
    cached = model(ids[:, :-1], use_cache=True)
    step = model(
        ids[:, -1:], past_key_values=cached.past_key_values, position_ids=torch.tensor([[TOTAL - 1]])
    )
    torch.testing.assert_close(step.last_hidden_state, whole[:, -1:], rtol=1e-4, atol=1e-4)


def test_lengths_of_other_tokens_are_refused() -> None:
    model = crisp.sparsify(FAMILIES["bert"].build(), TopK(0.5))
    ids = packed()["input_ids"]
    ends = torch.tensor([0, 5, 20])
    with pytest.raises(ValueError, match=f"cu_seq_lens_q ends at 20, but there are 1 x {TOTAL} tokens"):
        model(ids, cu_seq_lens_q=ends)
    with pytest.raises(
        ValueError, match=f"seq_idx numbers the sequences of 3 tokens, but .* {TOTAL} queries"
    ):
        model(ids, seq_idx=torch.tensor([[0, 0, 1]]))
    ends = torch.tensor([0, 4, 6])
    with pytest.raises(ValueError, match="cu_seq_lens_q ends at 6, but there are 1 x 4 tokens"):
        crisp.sparsify(bart(), TopK(0.5), attention="cross")(
            torch.arange(6)[None],
            decoder_input_ids=torch.arange(4)[None],
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
        )
