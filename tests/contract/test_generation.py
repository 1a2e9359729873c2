"""Generation: with a key/value cache the same tokens as without."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import crisp_attention as crisp
from tests.contract.families import FAMILIES
from tests.contract.rows import pairs, sparse
from tests.table import ROWS

WANTED = ("gpt2", "gpt_neox", "llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_oss", "phi3")
WANTED += ("bart", "t5")
LLAMA = next(family for family in FAMILIES if family.name == "llama")
HEADS = {
    "gpt2": "GPT2LMHeadModel",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}


def with_head(family):
    name = family.name
    config = getattr(transformers, family.config_class)(**family.settings)
    stem = family.config_class.removesuffix("TextConfig").removesuffix("Config")
    torch.manual_seed(0)
    model = getattr(transformers, HEADS.get(name, f"{stem}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def generate(model, cache, **how):
    ids = torch.tensor([[1, 1, 7, 9, 11, 13, 15, 17], [5, 6, 7, 8, 9, 10, 12, 14]])
    mask = (ids != 1).long()
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        use_cache=cache,
        eos_token_id=None,
        pad_token_id=1,
        **how,
    )


@pairs(WANTED, core=("llama", "gemma2", "t5"))
def test_cached_generation_equals_uncached(family, row):
    model = sparse(with_head(family), row.method)
    torch.testing.assert_close(generate(model, cache=True), generate(model, cache=False), rtol=0, atol=0)


QUICK = {"topk", "window+topk", "block_topk"}
quick_methods = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, row in ROWS.items()
        if row.causal
    ],
)


@quick_methods
def test_a_static_cache_changes_nothing(row):
    model = sparse(with_head(LLAMA), row.method)
    static = generate(model, cache=True, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(static, generate(model, cache=True), rtol=0, atol=0)


@pytest.mark.slow
@quick_methods
def test_a_trained_model_tells_the_same_story_with_and_without_cache(models_folder, row):
    folder = models_folder / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = sparse(AutoModelForCausalLM.from_pretrained(folder), row.method)
    prompt = tokenizer("Once upon a time, there was a little girl", return_tensors="pt")
    stories = [
        tokenizer.decode(
            model.generate(**prompt, max_new_tokens=40, do_sample=False, use_cache=cache, pad_token_id=0)[0]
        )
        for cache in (True, False)
    ]
    assert stories[0] == stories[1]
    assert len(stories[0]) > 80


def test_half_of_the_keys_still_tell_a_story(models_folder):
    """Kept mass and likelihood of a trained model: top-k keeps most of both, random keys do not."""
    folder = models_folder / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    batch = tokenizer(text, return_tensors="pt")

    def loss_and_mass(method):
        model = crisp.sparsify(AutoModelForCausalLM.from_pretrained(folder), method)
        with crisp.measuring(model) as measured, torch.no_grad():
            loss = model(**batch, labels=batch["input_ids"]).loss.item()
        return loss, measured.summary()["kept_mass"]

    dense, top, drawn = (loss_and_mass(m) for m in (crisp.Dense(), crisp.TopK(0.5), crisp.RandomK(0.5)))
    assert dense[1] == pytest.approx(1)
    assert top[0] < dense[0] + 0.1
    assert top[1] > 0.9
    assert drawn[0] > dense[0] + 0.2
    assert drawn[1] < 0.8
