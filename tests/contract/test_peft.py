"""Every method under PEFT's adapters, those that put virtual tokens before the text included."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import peft
import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

import crisp_attention as crisp
from crisp_attention.methods.method import as_method
from tests.contract.rows import fits, sparse
from tests.models.adapted import quiet, trained
from tests.models.tiny import GROUPED, llama, noisy
from tests.table import ROWS

pytestmark = quiet
ADAPTERS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lambda **task: LoraConfig(target_modules="all-linear", **task),
    "ia3": lambda **task: IA3Config(target_modules="all-linear", feedforward_modules=[], **task),
    "prefix": lambda **task: PrefixTuningConfig(num_virtual_tokens=3, **task),
    "prompt": lambda **task: PromptTuningConfig(num_virtual_tokens=3, **task),
}
adapters = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS.keys())
CORE = {"topk", "window", "block_topk", "entmax, learned"}  # with every adapter and model, slow


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    settings = {name: value for name, value in GROUPED.items() if name != "num_key_value_heads"}
    return noisy(BertForSequenceClassification(BertConfig(pad_token_id=1, **settings)))


@dataclass(frozen=True)
class Kind:
    """A model, and its task in PEFT's words."""

    build: Callable[[], PreTrainedModel]
    task: str

    def adapted(self, model: PreTrainedModel, adapter: Callable[..., PeftConfig]):
        """`model` with an adapter whose weights are not small."""
        torch.manual_seed(1)
        made = get_peft_model(model, adapter(task_type=self.task))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return made.eval()


KINDS = {"bert": Kind(bert, "SEQ_CLS"), "llama": Kind(llama, "CAUSAL_LM")}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def cases(*names: str) -> pytest.MarkDecorator:
    """Parametrize `kind`, `adapter` and `row`: every adapter of every model once, with a method in turn.

    Slow: every method once, and those of the core with every adapter.
    """
    pairs = list(product(ADAPTERS, names))
    fast = {(name, *pair) for name, pair in zip(list(ROWS)[::-2], pairs, strict=False)}
    slow = {(name, *pairs[i % len(pairs)]) for i, name in enumerate(ROWS)}
    return pytest.mark.parametrize(
        ("kind", "adapter", "row"),
        [
            pytest.param(
                KINDS[kind],
                ADAPTERS[adapter],
                row,
                id=f"{name}-{adapter}-{kind}",
                marks=() if (name, adapter, kind) in fast else pytest.mark.slow,
            )
            for name, row in ROWS.items()
            for adapter, kind in pairs
            if fits(kind, name)
            and (row.causal or adapter != "prefix")  # whose keys are more than its queries
            if name in CORE or (name, adapter, kind) in fast | slow
        ],
    )


every_case = cases(*KINDS)
TEXTS = torch.arange(5, 13), torch.arange(13, 18)


def padded(*texts: torch.Tensor, extra: int = 0) -> dict[str, torch.Tensor]:
    """A batch of texts, padded on the right to the longest and `extra` tokens more."""
    length = max(len(text) for text in texts) + extra
    ids = torch.stack([torch.cat([text, torch.ones(length - len(text), dtype=torch.long)]) for text in texts])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def run(model, *texts: torch.Tensor, extra: int = 0) -> torch.Tensor:
    """The logits of the real tokens, or of the texts."""
    batch = padded(*texts, extra=extra)
    with torch.no_grad():
        logits = model(**batch).logits
    if logits.dim() == 2:
        return logits
    return logits[:, -batch["input_ids"].shape[1] :][batch["attention_mask"].bool()]


@every_case
def test_with_nothing_dropped_it_is_the_adapted_models_own_attention_bit_for_bit(kind, adapter, row):
    model = kind.build()
    model.set_attn_implementation("eager")
    model = kind.adapted(model, adapter)
    own = run(model, *TEXTS, extra=2)
    crisp.sparsify(model, row.dense, backend="reference")
    assert torch.equal(run(model, *TEXTS, extra=2), own)
    sparse(model, row.method)
    assert row is ROWS["dense"] or not torch.allclose(run(model, *TEXTS, extra=2), own, atol=1e-4)


@every_case
def test_a_text_alone_equals_the_text_in_a_padded_batch(kind, adapter, row):
    model = kind.adapted(sparse(kind.build(), row.method), adapter)
    alone = torch.cat([run(model, text) for text in TEXTS])
    for extra in (0, 1, 7):
        torch.testing.assert_close(run(model, *TEXTS, extra=extra), alone, rtol=1e-5, atol=1e-5)


@every_case
def test_padding_is_in_no_measurement(kind, adapter, row):
    model = kind.adapted(sparse(kind.build(), row.method), adapter)

    def table(extra):
        with crisp.measuring(model) as measured:
            run(model, *TEXTS, extra=extra)
        return measured.table()

    bare = table(0)
    assert set(bare["layer"]) == {0, 1}
    assert set(bare["method"]) == {as_method(row.method).name}
    numbers = ["sparsity", "kept_mass", "entropy", "valid_pairs"]
    torch.testing.assert_close(
        torch.tensor(table(7)[numbers].to_numpy()),
        torch.tensor(bare[numbers].to_numpy()),
        rtol=1e-4,
        atol=1e-5,
    )


@every_case
def test_trained_and_saved_it_comes_back_as_it_was(kind, adapter, row, tmp_path):
    kind.build().save_pretrained(tmp_path / "base")
    base = type(kind.build()).from_pretrained(tmp_path / "base")
    model = kind.adapted(sparse(base, row.method), adapter)
    before = run(model, *TEXTS)
    batch = padded(*TEXTS)
    trained(model, batch | {"labels": torch.tensor([0, 1]) if kind.task == "SEQ_CLS" else batch["input_ids"]})
    assert not torch.allclose(run(model, *TEXTS), before, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(run(crisp.load(tmp_path / "adapter"), *TEXTS), run(model, *TEXTS))
    if model.active_peft_config.is_prompt_learning:
        return
    adapted = run(model, *TEXTS)
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged, *TEXTS), adapted, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(run(crisp.load(tmp_path / "merged"), *TEXTS), run(merged, *TEXTS))


@cases("llama")
def test_generation_with_a_cache_takes_the_tokens_that_whole_passes_choose(kind, adapter, row):
    model = kind.adapted(sparse(kind.build(), row.method), adapter)
    new, text = 8, TEXTS[0][None]
    how = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    found = model.generate(input_ids=text, attention_mask=torch.ones_like(text), **how)
    with torch.no_grad():
        for _ in range(new):
            whole = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
            text = torch.cat([text, whole[:, -1:].argmax(dim=-1)], dim=1)
    assert found[0, -new:].tolist() == text[0, -new:].tolist()


OTHERS: dict[str, Callable[..., PeftConfig]] = {
    "AdaLoRA": lambda **task: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, **task),
    "DoRA": lambda **task: LoraConfig(target_modules=["q_proj"], use_dora=True, **task),
    "LLaMA-Adapter": lambda **task: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, **task),
    "LoHa": lambda **task: peft.LoHaConfig(target_modules=["q_proj"], **task),
    "OFT": lambda **task: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, **task),
    "P-tuning": lambda **task: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **task),
    "VeRA": lambda **task: peft.VeraConfig(target_modules=["q_proj"], **task),
}


@pytest.mark.parametrize("adapter", OTHERS.values(), ids=OTHERS.keys())
def test_every_sort_of_adapter_carries_the_setting(adapter, tmp_path):
    """The LLaMA-Adapter wraps the attention modules themselves, so that their names change."""
    kind = KINDS["llama"]
    kind.build().save_pretrained(tmp_path / "base")
    base = type(kind.build()).from_pretrained(tmp_path / "base")
    model = kind.adapted(crisp.sparsify(base, crisp.TopK(0.6)), adapter)
    model.save_pretrained(tmp_path / "adapter")
    expected = run(model, *TEXTS)
    assert torch.equal(run(crisp.load(tmp_path / "adapter"), *TEXTS), expected)
    assert not torch.allclose(run(crisp.densify(model), *TEXTS), expected, atol=1e-3)


@kinds
@adapters
def test_it_is_sparse_in_its_phase_only(kind, adapter):
    dense = kind.adapted(kind.build(), adapter)
    by_phase = {
        phase: kind.adapted(crisp.sparsify(kind.build(), crisp.TopK(0.6), phase=phase), adapter)
        for phase in ("train", "eval")
    }
    own = run(dense, *TEXTS)
    torch.testing.assert_close(run(by_phase["train"], *TEXTS), own, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(by_phase["eval"], *TEXTS), own, atol=1e-3)
    for module in dense.modules():  # so that training differs by the attention alone
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for model in by_phase.values():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
    torch.testing.assert_close(
        run(by_phase["eval"], *TEXTS), run(dense.train(), *TEXTS), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(run(by_phase["train"], *TEXTS), own, atol=1e-3)


@pytest.mark.slow
def test_a_trained_model_learns_another_story_and_remembers_it_after_loading(models_folder, tmp_path):
    folder = models_folder / "stories260K"
    text = "Once upon a time a wise old fox taught a small crab to count the grey stones under the bridge."
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]

    def result(model):
        with torch.no_grad():
            output = model.eval()(input_ids=ids, labels=ids)
        return output.loss.item(), output.logits

    model = crisp.sparsify(AutoModelForCausalLM.from_pretrained(folder), crisp.TopK(0.8))
    before, _ = result(model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    trained(model, {"input_ids": ids, "labels": ids})
    loss, logits = result(model)
    assert loss < before - 0.5
    model.save_pretrained(tmp_path)
    assert torch.equal(result(crisp.load(tmp_path))[1], logits)
    with pytest.warns(crisp.SparseCheckpointLoadedDense, match=r"topk:sparsity=0\.8 in 5 layers"):
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert (result(plain)[1] - logits).abs().max() > 1
    assert torch.equal(result(crisp.restore(plain))[1], logits)
