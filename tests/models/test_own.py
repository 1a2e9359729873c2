"""Layers that drop nothing are left to the attention that the model had, and only those."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, Method, NofM, PerHead, RandomK, TopK, TopP, Window
from crisp_attention.kernels import reference
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import recording
from crisp_attention.methods.pairs import causal_mask
from tests.cases import normal
from tests.models.tiny import distilbert, gemma2, llama, logits
from tests.strategies import COUNTING_LAYOUTS, METHODS, shares

LENGTH = 12
COUNTED = st.one_of(  # what these keep does not depend on the scores
    st.builds(lambda rule: Method(rule=rule), shares(TopK) | shares(RandomK)),
    st.builds(lambda n, m: Method(rule=NofM(n, n + m)), st.integers(1, 6), st.integers(0, 12)),
    st.builds(Method, COUNTING_LAYOUTS),
    st.builds(
        Method, st.builds(Window, st.integers(0, LENGTH).map(lambda n: 2 * n + 1), st.integers(0, LENGTH))
    ),
    st.builds(
        Method, st.builds(BlockTopK, st.sampled_from([0.0, 0.1, 0.4]), st.integers(1, 14), st.integers(0, 3))
    ),
)


def kept(method, valid):
    """What the reference keeps of scores (1, 2, n, n), and its output."""
    n = valid.shape[-1]
    states = normal(3, 1, 2, n, 4, dtype=torch.float32)
    seen = []
    call = Call(*states, method, scale=1.0, valid=valid, seed=torch.tensor(3))
    output, _ = reference.attention(call, observe=lambda observation: seen.append(observation.keep))
    return seen[0], output, reference.attention(Call(*states, Method(), scale=1.0, valid=valid))[0]


@given(COUNTED, st.integers(1, LENGTH))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_a_method_that_counts_keys_drops_nothing_exactly_where_it_says_so(method, n) -> None:
    keep, *_ = kept(method, torch.ones(1, 1, n, n, dtype=torch.bool))
    assert method.drops_nothing(n) == bool(keep.all())
    assert not method.drops_nothing() or keep.all()


@given(METHODS, st.integers(1, LENGTH), st.integers(0, 4), st.booleans())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_what_says_that_it_drops_nothing_is_dense_attention_on_shorter_rows_too(
    method, n, padding, causal
) -> None:
    valid = (torch.arange(n) >= min(padding, n - 1)).expand(1, 1, n, n)
    valid = valid & causal_mask(n, n, valid.device) if causal else valid
    if method.drops_nothing(n):
        keep, output, dense = kept(method, valid)
        real = valid.any(-1).expand(1, 2, n) & valid[..., -1:, :].transpose(-1, -2)[..., 0]
        assert keep[real].equal(valid.expand_as(keep)[real])
        assert output[real].equal(dense[real])


@pytest.mark.parametrize(
    ("method", "any_length"),
    [
        (Dense(), True),
        (TopK(0.0), True),
        (TopK(keep=8), False),
        (TopK(0.05), False),
        (Window(15), False),
        (BlockTopK(0.5, block_size=8), False),
        (TopP(1.0), True),
        (Entmax(1), True),
        (Method(BlockTopK(0.0), Entmax(1)), True),
    ],
)
def test_by_default_it_is_the_models_attention_wherever_no_row_can_drop_a_key(method, any_length) -> None:
    model, own = distilbert(), logits(distilbert())
    ids = torch.arange(40)[None] % 32
    longer = model(ids).logits
    crisp.sparsify(model, method)
    assert torch.equal(logits(model), own)
    assert torch.equal(model(ids).logits, longer) == any_length
    row = crisp.explain(model, length=8).rows[0]
    assert (row.kernel, row.method) == (None, model.get_submodule(row.name)._crisp.method.spec)
    assert row.why == f"it drops nothing{'' if any_length else ' of 8 keys'}; it runs sdpa"
    assert (crisp.explain(model, length=40).rows[0].kernel is None) == any_length


def test_a_head_that_drops_something_keeps_its_layer_from_it() -> None:
    some = PerHead((Method(), Method(rule=TopK(0.5))))
    assert not some.drops_nothing()
    assert PerHead((Method(), Method(rule=TopK(0.0)))).drops_nothing()
    assert not torch.equal(logits(crisp.sparsify(distilbert(), layers={"*": some})), logits(distilbert()))


def test_a_schedule_starts_from_the_model_itself() -> None:
    model, own = llama(), logits(llama())
    crisp.sparsify(model, TopK(0.6))
    assert not torch.equal(logits(model), own)
    crisp.set_sparsity(model, 0.0)
    assert torch.equal(logits(model), own)


def test_a_kernel_that_was_asked_for_computes_what_drops_nothing() -> None:
    model = llama()
    model.set_attn_implementation("eager")
    eager = logits(model)
    assert torch.equal(logits(crisp.sparsify(model, TopK(0.0), backend="reference")), eager)
    assert {row.kernel for row in crisp.explain(model).rows} == {"reference"}
    model = crisp.densify(model)
    model.set_attn_implementation("sdpa")
    sdpa = logits(model)
    assert not torch.equal(sdpa, eager)
    assert torch.equal(logits(crisp.sparsify(model, TopK(0.0), backend="reference")), eager)


@dataclass(frozen=True)
class Squared(Dense):
    """Dense by inheritance, not by what it computes."""

    def weigh(self, rows, keep):
        return super().weigh(rows, keep).square()


def test_a_subclass_is_computed_as_what_it_is() -> None:
    assert not Method(rule=Squared()).drops_nothing()
    model = crisp.sparsify(distilbert(), Squared())
    weights = model(torch.arange(6)[None], output_attentions=True).attentions[0]
    assert (weights.sum(dim=-1) < 0.9).all()


@pytest.mark.parametrize("with_masks", [True, False])
def test_an_attention_function_of_the_user_stays_that_of_the_layers_that_drop_nothing(with_masks) -> None:
    def doubled(module, query, key, value, attention_mask, **more):
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, weights = sdpa(module, query, key, value, attention_mask, **more)
        return 2 * output, weights

    name = f"doubled_{with_masks}"
    AttentionInterface.register(name, doubled)
    if with_masks:
        AttentionMaskInterface.register(name, eager_mask)
    model = llama()
    model.set_attn_implementation(name)
    own = logits(model)
    assert not torch.allclose(own, logits(llama()))
    assert torch.equal(logits(crisp.sparsify(model, TopK(0.0))), own)


@pytest.mark.parametrize(
    ("build", "had", "computes"),
    [
        (llama, "eager", "eager"),
        (llama, "sdpa", "sdpa"),
        (llama, "flex_attention", "sdpa"),
        (gemma2, "flex_attention", "eager"),  # SDPA has no softcap
    ],
)
def test_what_is_told_of_a_layer_is_what_computes_it(build, had, computes) -> None:
    model, same = build(), build()
    model.set_attn_implementation(had)
    same.set_attn_implementation(computes)
    crisp.sparsify(model, TopK(0.0))
    with recording() as used:
        assert torch.equal(logits(model), logits(same))
    assert used == {computes}
    assert {row.why for row in crisp.explain(model).rows} == {f"it drops nothing; it runs {computes}"}


def test_watching_it_changes_nothing_beyond_rounding() -> None:
    model = crisp.sparsify(llama(), TopK(0.0))
    own = logits(model)
    with crisp.measuring(model) as measured:
        torch.testing.assert_close(logits(model), own, rtol=1e-5, atol=1e-5)
    assert (measured.table()["sparsity"] == 0).all()
