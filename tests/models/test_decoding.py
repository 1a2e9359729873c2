"""Generation with blocks: their mean keys are carried along, and nothing can be told from the result."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import crisp_attention as crisp
from crisp_attention import BlockTopK, Method, PerHead, TopK
from crisp_attention.models.block_means import BlockMeans
from crisp_attention.models.decoding import Decoding
from crisp_attention.models.settings import settings_of
from tests.models.tiny import distilbert, gpt2, llama, mistral

BLOCKS = BlockTopK(0.6, block_size=3)
PROMPTS = torch.tensor([[1, 1, 7, 9, 11, 13, 15, 17], [5, 6, 7, 8, 9, 10, 12, 14]])
LAYERS = 2


@pytest.fixture
def pooled(monkeypatch) -> dict[str, int]:
    """How often all keys were pooled, and how often one was added; each time the means must be right."""
    counts = {"of": 0, "add": 0}
    anew, add, block_means = BlockMeans.of.__func__, BlockMeans.add, Decoding.block_means

    def counted_of(cls, *args):
        counts["of"] += 1
        return anew(cls, *args)

    def counted_add(self, *args):
        counts["add"] += 1
        add(self, *args)

    def checked(self, key, valid, size):
        means = block_means(self, key, valid, size)
        if means is not None:
            wanted = anew(BlockMeans, key, valid.expand(len(key), -1, -1, -1), size).means()
            torch.testing.assert_close(means, wanted, rtol=1e-5, atol=1e-6)
        return means

    monkeypatch.setattr(BlockMeans, "of", classmethod(counted_of))
    monkeypatch.setattr(BlockMeans, "add", counted_add)
    monkeypatch.setattr(Decoding, "block_means", checked)
    return counts


def generate(model, prompts: Tensor = PROMPTS, tokens: int = 12, **how) -> Tensor:
    """The tokens that a model generates; 1 in a prompt is padding."""
    how = {"attention_mask": (prompts != 1).long(), "eos_token_id": None, "pad_token_id": 1, **how}
    return model.generate(prompts, max_new_tokens=tokens, do_sample=False, **how)


def without_following(model, *args, **how) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "block_means", lambda *_: None)
        return generate(model, *args, **how)


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static", "disable_compile": True}], ids=str)
def test_keys_are_pooled_once_and_then_only_added(pooled, build, how) -> None:
    model = crisp.sparsify(build(), BLOCKS)
    generated = generate(model, **how)
    assert pooled == {"of": LAYERS, "add": LAYERS * (12 - 2)}  # the first token comes from the prompt's pass
    assert generated.equal(without_following(model, **how))
    assert generated.equal(generate(model, use_cache=False))


def test_a_trained_model_is_followed_too(pooled, models_folder) -> None:
    folder = models_folder / "stories260K"
    model = crisp.sparsify(AutoModelForCausalLM.from_pretrained(folder), BlockTopK(0.5, block_size=8))
    prompt = AutoTokenizer.from_pretrained(folder)("Once upon a time, there was a girl", return_tensors="pt")
    story = generate(model, prompt["input_ids"], 40)
    layers = len(settings_of(model))
    assert pooled == {"of": layers, "add": layers * (40 - 2)}
    assert story.equal(without_following(model, prompt["input_ids"], 40))


def test_a_second_prompt_and_another_batch_start_anew(pooled) -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    for times, prompts in enumerate((PROMPTS, PROMPTS + 20, PROMPTS[1:], PROMPTS.repeat(3, 1)), 1):
        assert generate(model, prompts).equal(generate(model, prompts, use_cache=False))
        assert pooled["of"] == times * LAYERS


def test_beams_are_right(pooled) -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    beams = generate(model, num_beams=3)
    assert beams.equal(without_following(model, num_beams=3))
    assert beams.equal(generate(model, num_beams=3, use_cache=False))
    assert not beams.equal(generate(model))


def test_assisted_decoding_is_right(pooled) -> None:
    """The assistant's guesses are taken back again: the cache is cropped."""
    model, assistant = (crisp.sparsify(llama(), BLOCKS) for _ in range(2))
    with torch.no_grad():
        assistant.lm_head.weight.add_(torch.randn_like(assistant.lm_head.weight))
    assisted = generate(model, PROMPTS[1:], assistant_model=assistant)
    assert assisted.equal(generate(model, PROMPTS[1:], use_cache=False))


def test_a_sliding_window_is_pooled_anew_at_every_step_once_it_is_full(pooled) -> None:
    model = crisp.sparsify(mistral(), BLOCKS)
    assert generate(model).equal(generate(model, use_cache=False))
    assert pooled["of"] >= LAYERS * (12 - 2)


def test_inference_mode_works() -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    with torch.inference_mode():
        inside = generate(model)
    assert inside.equal(generate(model))


def test_heads_that_agree_on_their_blocks_are_followed_and_others_are_right(pooled) -> None:
    three, two = Method(BLOCKS), Method(BlockTopK(0.5, block_size=2))
    for other, often in ((Method(rule=TopK(0.5)), LAYERS), (two, 0)):
        pooled["of"] = 0
        model = crisp.sparsify(llama(), PerHead((three, other, three, other)))
        assert generate(model).equal(generate(model, use_cache=False))
        assert pooled["of"] == often


# --- calls with a cache of one's own


def steps(model, cache, tokens: list[int]) -> Tensor:
    """Logits of one token after the other."""
    each = [model(torch.tensor([[token]]), past_key_values=cache).logits for token in tokens]
    return torch.cat(each, dim=1)


def whole(tokens: list[int], last: int) -> Tensor:
    """What another model of the same weights says without a cache."""
    return crisp.sparsify(llama(), BLOCKS)(torch.tensor([tokens]), use_cache=False).logits[:, -last:]


@torch.no_grad()
def test_a_cache_that_the_caller_crops_copies_and_writes_to_is_noticed(pooled) -> None:
    model, prompt = crisp.sparsify(llama(), BLOCKS), [5, 6, 7, 8, 9, 10, 11]
    cache = DynamicCache(config=model.config)
    model(torch.tensor([prompt]), past_key_values=cache)
    torch.testing.assert_close(steps(model, cache, [20, 21, 22]), whole([*prompt, 20, 21, 22], 3))
    fork = copy.deepcopy(cache)
    cache.crop(-2)
    torch.testing.assert_close(steps(model, cache, [30, 31]), whole([*prompt, 20, 30, 31], 2))
    torch.testing.assert_close(steps(model, fork, [23]), whole([*prompt, 20, 21, 22, 23], 1))
    torch.testing.assert_close(steps(model, cache, [32]), whole([*prompt, 20, 30, 31, 32], 1))
    for layer in cache.layers:
        layer.keys[:, :, :3] += 3.0  # the very tensor that the last step left, with other content
    steps(model, cache, [33])


@torch.no_grad()
def test_chunks_of_a_prompt_and_steps_in_turn_are_right(pooled) -> None:
    model, tokens = crisp.sparsify(llama(), BLOCKS), list(range(10, 28))
    cache, logits = DynamicCache(config=model.config), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 11), (11, 12), (12, 13), (13, 18)):
        logits.append(model(torch.tensor([tokens[first:last]]), past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole(tokens, 18))
    assert pooled == {"of": 2 * LAYERS, "add": 2 * LAYERS}


@torch.no_grad()
def test_a_mask_that_changes_in_between_is_noticed(pooled) -> None:
    model, cache = crisp.sparsify(llama(), BLOCKS), None
    for keys in range(6, 10):
        mask = torch.ones(1, keys, dtype=torch.long)
        mask[:, : keys - 6] = 0  # ever more of the beginning is forgotten
        first = 0 if cache is None else keys - 1
        out = model(torch.arange(first, keys)[None] + 5, attention_mask=mask, past_key_values=cache)
        cache = out.past_key_values
    assert pooled["add"] == 0


@pytest.mark.parametrize("grad", [False, True])
def test_the_model_keeps_no_cache_alive_and_no_graph(grad: bool) -> None:
    model, cache = crisp.sparsify(llama(), BLOCKS), DynamicCache()
    with torch.set_grad_enabled(grad):
        model(PROMPTS[1:], past_key_values=cache)
        logits = steps(model, cache, [20, 21])
    assert logits.requires_grad == grad
    means = settings_of(model)[0][1].decoding.means
    assert not means.sums.requires_grad
    layer, keys = weakref.ref(cache.layers[0]), weakref.ref(cache.layers[0].keys)
    del cache, logits
    gc.collect()
    assert layer() is keys() is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_follows_its_own_cache_and_is_let_go_by_itself(pooled, duplicate) -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    first = generate(model)
    twin = duplicate(model)
    assert all(each.decoding.means is None for _, each in settings_of(twin))
    assert generate(twin).equal(first)
    assert pooled["of"] == 2 * LAYERS
    crisp.densify(twin)
    assert not any(module._forward_pre_hooks for module in twin.modules())
    assert generate(model).equal(first)
    assert pooled == {"of": 3 * LAYERS, "add": 3 * LAYERS * 10}


def test_only_layers_with_blocks_have_a_hook_and_only_one() -> None:
    def hooks(model) -> list[int]:
        return [len(layer.module._forward_pre_hooks) for layer, _ in settings_of(model)]

    assert hooks(crisp.sparsify(distilbert(), TopK(0.5))) == [0] * 4
    model = crisp.sparsify(distilbert(), layers={"*": TopK(0.5), "1-2": BLOCKS})
    assert hooks(model) == [0, 1, 1, 0]
    assert hooks(crisp.sparsify(model, BLOCKS)) == [1] * 4
    assert not any(module._forward_pre_hooks for module in crisp.densify(model).modules())


@torch.no_grad()
def test_nothing_before_a_token_changes_with_it() -> None:
    model = crisp.sparsify(llama(), BLOCKS)
    ids = torch.arange(5, 22)[None]
    changed = torch.cat([ids[:, :10], ids[:, 10:] + 30], dim=1)
    one, other = model(ids).logits, model(changed).logits
    assert one[:, :10].equal(other[:, :10])
    assert not one[:, 10:].equal(other[:, 10:])
