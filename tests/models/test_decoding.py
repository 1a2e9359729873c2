"""Generation with blocks: with a key/value cache, however it is used, the result is that without one."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import crisp_attention as crisp
from crisp_attention import BlockTopK, Method, PerHead, TopK
from crisp_attention.methods.method import as_method
from tests.models.tiny import gpt2, llama, mistral

BLOCKS = BlockTopK(0.6, block_size=3)
PROMPTS = torch.tensor([[1, 1, 7, 9, 11, 13, 15, 17], [5, 6, 7, 8, 9, 10, 12, 14]])


def generate(model, prompts: Tensor = PROMPTS, tokens: int = 12, **how) -> Tensor:
    """The tokens that a model generates; 1 in a prompt is padding."""
    how = {"attention_mask": (prompts != 1).long(), "eos_token_id": None, "pad_token_id": 1, **how}
    return model.generate(prompts, max_new_tokens=tokens, do_sample=False, **how)


@pytest.mark.parametrize("build", [gpt2, llama, mistral])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=str)
def test_a_cache_changes_no_token(build, how) -> None:
    model = crisp.sparsify(build(), BLOCKS)
    assert generate(model, **how).equal(generate(model, use_cache=False, **how))


def test_a_static_cache_and_inference_mode_change_no_token() -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    expected = generate(model, use_cache=False)
    assert generate(model, cache_implementation="static", disable_compile=True).equal(expected)
    with torch.inference_mode():
        assert generate(model).equal(expected)


def test_assisted_decoding_is_right() -> None:
    """The assistant's guesses are taken back again: the cache is cropped."""
    model, assistant = (crisp.sparsify(llama(), BLOCKS) for _ in range(2))
    with torch.no_grad():
        assistant.lm_head.weight.add_(torch.randn_like(assistant.lm_head.weight))
    assisted = generate(model, PROMPTS[1:], assistant_model=assistant)
    assert assisted.equal(generate(model, PROMPTS[1:], use_cache=False))


@pytest.mark.parametrize("other", [TopK(0.5), BlockTopK(0.5, block_size=2)])
def test_heads_of_several_methods_are_right(other) -> None:
    three = Method(BLOCKS)
    method = PerHead((three, as_method(other)) * 2)
    model = crisp.sparsify(llama(), method)
    assert generate(model).equal(generate(model, use_cache=False))


# --- calls with a cache of one's own


def steps(model, cache, tokens: list[int]) -> Tensor:
    """Logits of one token after the other."""
    each = [model(torch.tensor([[token]]), past_key_values=cache).logits for token in tokens]
    return torch.cat(each, dim=1)


def whole(tokens: list[int], last: int) -> Tensor:
    """What another model of the same weights says without a cache."""
    return crisp.sparsify(llama(), BLOCKS)(torch.tensor([tokens]), use_cache=False).logits[:, -last:]


@torch.no_grad()
def test_a_cache_that_the_caller_crops_and_copies() -> None:
    model, prompt = crisp.sparsify(llama(), BLOCKS), [5, 6, 7, 8, 9, 10, 11]
    cache = DynamicCache(config=model.config)
    model(torch.tensor([prompt]), past_key_values=cache)
    torch.testing.assert_close(steps(model, cache, [20, 21, 22]), whole([*prompt, 20, 21, 22], 3))
    fork = copy.deepcopy(cache)
    cache.crop(-2)
    torch.testing.assert_close(steps(model, cache, [30, 31]), whole([*prompt, 20, 30, 31], 2))
    torch.testing.assert_close(steps(model, fork, [23]), whole([*prompt, 20, 21, 22, 23], 1))
    torch.testing.assert_close(steps(model, cache, [32]), whole([*prompt, 20, 30, 31, 32], 1))


@torch.no_grad()
def test_chunks_of_a_prompt_and_steps_in_turn_are_right() -> None:
    model, tokens = crisp.sparsify(llama(), BLOCKS), list(range(10, 28))
    cache, logits = DynamicCache(config=model.config), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 11), (11, 12), (12, 13), (13, 18)):
        logits.append(model(torch.tensor([tokens[first:last]]), past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole(tokens, 18))


@torch.no_grad()
def test_nothing_before_a_token_changes_with_it() -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    ids = torch.arange(5, 22)[None]
    changed = torch.cat([ids[:, :10], ids[:, 10:] + 30], dim=1)
    one, other = model(ids).logits, model(changed).logits
    assert one[:, :10].equal(other[:, :10])
    assert not one[:, 10:].equal(other[:, 10:])
