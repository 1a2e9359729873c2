"""Arguments of a call: what nothing reads changes nothing, what could change the mathematics is refused."""

import pytest
import torch
from transformers import AttentionInterface

import crisp_attention as crisp
from crisp_attention import TopK
from crisp_attention.models.transformers.attention import crisp_attention
from tests.contract.families import available
from tests.contract.test_families import run
from tests.models.tiny import BATCH, distilbert, layers_of, llama, logits

# from tokenizers, collators, Trainers and users; no attention function has a name for any of them
TRAVELLING = {
    "special_tokens_mask": torch.zeros(2, 9, dtype=torch.long),
    "offset_mapping": torch.ones(2, 9, 2, dtype=torch.long),
    "my_own_key": torch.ones(3),
    "num_items_in_batch": torch.tensor(7),
    "use_cache": True,
    "example": ["one", "two"],
}


@pytest.mark.parametrize("family", available(), ids=lambda family: family.name)
def test_what_travels_through_the_modules_changes_nothing(family) -> None:
    model = crisp.sparsify(family.build(), TopK(0.5))
    expected = run(family, model)
    calls = []

    def spy(spied, *args, **kwargs):
        calls.append((spied, args, kwargs))
        return crisp_attention(spied, *args, **kwargs)

    AttentionInterface.register("crisp", spy)
    try:
        assert torch.equal(run(family, model), expected)
    finally:
        AttentionInterface.register("crisp", crisp_attention)
    module, args, kwargs = calls[0]
    with torch.no_grad():
        plain, _ = crisp_attention(module, *args, **kwargs)
        more, _ = crisp_attention(
            module, *args, **kwargs, **{k: v for k, v in TRAVELLING.items() if k not in kwargs}
        )
        assert torch.equal(more, plain)
        with pytest.raises(
            NotImplementedError, match=f"{type(module).__name__} passes cache to its attention"
        ):
            crisp_attention(module, *args, **kwargs, cache=object())


@pytest.mark.parametrize("method", [crisp.Dense(), TopK(0.5)])
@pytest.mark.parametrize("build", [distilbert, llama])
def test_segments_that_a_model_has_no_use_for_do_not_end_a_run(build, method) -> None:
    model = crisp.sparsify(build(), method)
    expected = logits(model)
    segments = torch.ones_like(BATCH["input_ids"])
    assert torch.equal(model(**BATCH, token_type_ids=segments).logits, expected)
    with crisp.measuring(model) as measured:
        model(**BATCH, token_type_ids=segments)
    assert len(measured.table()) > 0


def test_what_a_module_or_its_eager_function_names_is_refused() -> None:
    def eager_attention_forward(module, query, key, value, attention_mask, temperature=1.0, **kwargs):
        return query.transpose(1, 2) * temperature * kwargs.get("strength", 1.0), None

    layer = layers_of(distilbert())[0].module
    own = type(
        "OwnAttention", (type(layer),), {"forward": _rebound(type(layer).forward, eager_attention_forward)}
    )
    model = distilbert()
    for each in layers_of(model):
        each.module.__class__ = own
    crisp.sparsify(model, TopK(0.5))
    for name in ("temperature", "strength"):
        with pytest.raises(NotImplementedError, match=f"OwnAttention passes {name} to its attention"):
            model(**BATCH, **{name: 2.0})
    assert torch.equal(model(**BATCH, neither=2.0).logits, logits(crisp.sparsify(distilbert(), TopK(0.5))))


def _rebound(function, eager):
    """The function with another eager attention in its module's place."""
    names = {**function.__globals__, "eager_attention_forward": eager}
    return type(function)(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
