"""SLA in models: its projection is trained, saved, loaded and missed where it is missing; text stays as it is."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import crisp_attention as crisp
from crisp_attention import BlockTopK, Method, SparseLinear
from tests.models.adapted import lora, quiet
from tests.models.diffusion import built, run
from tests.models.tiny import BATCH, bart, distilbert, llama, logits

pytestmark = quiet
METHOD = SparseLinear(0.3, 0.1, block_size=2)


def projections(model: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in model.named_parameters() if "crisp_learned." in name}


def taught(model: nn.Module, method: Method = METHOD) -> nn.Module:
    """A sparse model whose projections are not those of the start."""
    crisp.sparsify(model, method)
    generator = torch.Generator().manual_seed(0)
    for each in projections(model).values():
        each.data = each.data + 0.5 * torch.randn(each.shape, generator=generator)
    return model


def output(model: nn.Module) -> Tensor:
    return run(model, "DiT") if "DiT" in type(model).__name__ else logits(model)


@pytest.mark.parametrize("build", [distilbert, lambda: built("DiT")], ids=["transformers", "diffusers"])
def test_the_projection_is_saved_and_loaded_and_a_plain_load_says_what_it_lost(build, tmp_path) -> None:
    model = taught(build())
    assert len(projections(model)) == 2 * (2 if "DiT" in type(model).__name__ else 4)
    model.save_pretrained(tmp_path)
    assert set(projections(model)) <= set(load_file(next(tmp_path.glob("*.safetensors"))))
    again = crisp.load(tmp_path).eval()
    assert output(again).equal(output(model))
    assert not output(crisp.sparsify(build(), METHOD)).allclose(output(model))  # so it was the projections
    with pytest.warns(
        crisp.SparseCheckpointLoadedDense,
        match="without what its attention may have learned",
    ):
        dense = type(model).from_pretrained(tmp_path)
    assert not crisp.is_sparse(dense)
    assert not projections(dense)


def test_a_trainer_goes_on_from_a_checkpoint_with_the_projection_it_had(tmp_path) -> None:
    data = [
        {"input_ids": ids, "attention_mask": mask, "labels": n % 2}
        for n, (ids, mask) in enumerate(zip(*BATCH.values(), strict=True))
    ]

    def train(model: nn.Module, steps: int, **more: object) -> dict[str, Tensor]:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True,
            disable_tqdm=True, lr_scheduler_type="constant",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=data * 4).train(**more)
        return projections(model)

    whole = train(crisp.sparsify(distilbert(), METHOD), 4)
    assert all(each.abs().sum() > 0 for each in whole.values())
    resumed = train(
        crisp.sparsify(distilbert(), METHOD), 4, resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert whole.keys() == resumed.keys()
    for name, each in resumed.items():
        torch.testing.assert_close(each, whole[name])


def test_lora_on_top_trains_and_keeps_the_projection(tmp_path) -> None:
    model = lora(crisp.sparsify(distilbert(), METHOD), modules_to_save=["crisp_learned"])
    trained = {name: each for name, each in projections(model).items() if each.requires_grad}
    assert len(trained) == 8
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.5)
    for _ in range(2):
        model(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    assert all(each.abs().sum() > 0 for each in trained.values())
    model.save_pretrained(tmp_path)
    from peft import PeftModel

    again = PeftModel.from_pretrained(crisp.sparsify(distilbert(), METHOD), tmp_path)
    torch.testing.assert_close(logits(again.eval()), logits(model.eval()))


def test_the_text_of_joint_attention_has_no_linear_part() -> None:
    plain, sparse = built("SD3"), crisp.sparsify(built("SD3"), Method(METHOD.layout))
    model = crisp.sparsify(copy.deepcopy(plain), METHOD)
    assert run(model, "SD3").equal(run(sparse, "SD3"))
    with crisp.measuring(taught(plain)) as measured:
        different = run(plain, "SD3")
    assert not different.allclose(run(model, "SD3"))
    assert (measured.table()["branch"] > 0.3).all()


def test_in_cross_attention_it_is_refused_before_anything_changes() -> None:
    model = bart()
    before = logits(model)
    with pytest.raises(ValueError, match="cross"):
        crisp.sparsify(model, METHOD, attention="cross")
    assert not crisp.is_sparse(model)
    assert logits(model).equal(before)


def damaged(folder: Path, change: str) -> None:
    """Replace the weight of one projection."""
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = next(each for each in weights if each.endswith("crisp_learned.branch.weight"))
    if change == "width":
        weights[name] = torch.zeros(4, 4)
    else:
        del weights[name]
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("build", [distilbert, lambda: built("DiT")], ids=["transformers", "diffusers"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "width",
            r"crisp_learned\.branch\.weight, which this model's attention learned, must be of shape 8 x 8, got 4 x 4",
        ),
        ("missing", r"does not hold .*crisp_learned\.branch\.weight"),
    ],
)
def test_a_projection_that_does_not_fit_or_is_missing_is_an_error(build, change, message, tmp_path) -> None:
    model = taught(build())
    model.save_pretrained(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(crisp.CheckpointError, match=message):
        crisp.load(tmp_path)


def test_the_mix_of_sla2_is_no_projection(tmp_path) -> None:
    taught(distilbert(), SparseLinear(0.3, 0.1, 2, combine="alpha")).save_pretrained(tmp_path)
    model = crisp.sparsify(distilbert(), METHOD)
    before = logits(model)
    with pytest.raises(RuntimeError, match=r"crisp_learned\.branch\.weight"):
        model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"alpha"', '"project"'))
    with pytest.raises(crisp.CheckpointError, match=r"does not hold .*crisp_learned\.branch\.(weight|bias)"):
        crisp.load(tmp_path)
    assert logits(model).equal(before)


def test_llama_generates_the_same_with_and_without_a_cache() -> None:
    model = taught(llama(), SparseLinear(0.3, 0.2, block_size=3))
    ids = torch.arange(2, 14)[None]
    with_cache, without = (
        model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)
    )
    assert with_cache.equal(without)


def test_block_top_k_is_what_it_begins_as() -> None:
    sparse = crisp.sparsify(distilbert(), BlockTopK(0.7, 2, local_blocks=0))
    torch.testing.assert_close(logits(crisp.sparsify(distilbert(), METHOD)), logits(sparse))


def bert() -> BertModel:
    """Of heads that the CPU kernel takes."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertModel(config)


def gradients(model: BertModel, tokens: int = 64, *, checkpointed: bool = False) -> dict[str, Tensor]:
    ids = torch.arange(tokens)[None] % 32
    outputs = checkpoint(model, ids, use_reentrant=False) if checkpointed else model(ids)
    outputs.last_hidden_state.square().sum().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("combine", ["project", "sum", "alpha"])
@pytest.mark.parametrize("feature_map", ["softmax", "hedgehog"])
def test_checkpointing_gives_the_same_gradients(block_size: int, combine: str, feature_map: str) -> None:
    method = SparseLinear(0.3, 0.1, block_size, feature_map, combine=combine)
    model = taught(bert(), method).train()
    assert "cpu" in repr(crisp.explain(model, length=64, training=True))
    plain = gradients(model)
    model.zero_grad()
    found = gradients(model, checkpointed=True)
    for name, each in plain.items():
        torch.testing.assert_close(found[name], each)


@pytest.mark.parametrize("tokens", [8, 60])
def test_what_learns_has_a_gradient_in_every_step_as_ddp_asks_for(tokens: int) -> None:
    model = crisp.sparsify(bert(), SparseLinear(0.5, block_size=8)).train()
    if tokens == 60:
        crisp.set_sparsity(model, 0.0)
    found = gradients(model, tokens)
    assert all(name in found for name in projections(model))
    with torch.no_grad():
        whole = bert().eval()(torch.arange(tokens)[None] % 32).last_hidden_state
        assert model.eval()(torch.arange(tokens)[None] % 32).last_hidden_state.equal(whole)


def test_parameters_that_are_dropped_or_never_trained_are_told_of() -> None:
    model = taught(distilbert())
    with pytest.warns(UserWarning, match=r"what distilbert.transformer.layer.1.* had learned is dropped"):
        crisp.sparsify(model, METHOD, layers=[0])
    assert len(projections(model)) == 2
    with pytest.warns(UserWarning, match="phase='eval' trains none"):
        crisp.sparsify(distilbert(), METHOD, phase="eval")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crisp.sparsify(model, METHOD.with_sparsity(0.5), layers=[0])
        crisp.sparsify(crisp.sparsify(distilbert(), METHOD), crisp.TopK(0.5))  # they were as at the start


def test_alone_is_nothing_without_a_marginal_block_whoever_computes_it() -> None:
    alone = SparseLinear(0.5, block_size=64, combine="alone")
    found = [
        crisp.sparsify(bert(), alone, backend=backend).eval()(torch.arange(16)[None]).last_hidden_state
        for backend in ("auto", "reference")
    ]
    torch.testing.assert_close(*found)
    states = torch.ones(1, 2, 16, 8)
    assert (crisp.attention(states, states, states, alone) == 0).all()


def test_adapters_that_would_be_saved_without_the_projections_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(built("DiT"), LoraConfig(target_modules=["to_q"]))
    with pytest.raises(
        ValueError, match=r'make the model sparse first, and give PEFT modules_to_save=\["crisp'
    ):
        crisp.sparsify(adapted, METHOD)
    assert not crisp.is_sparse(adapted)
    crisp.sparsify(adapted, crisp.TopK(0.5))
    kept = get_peft_model(
        crisp.sparsify(built("DiT"), METHOD),
        LoraConfig(target_modules=["to_q"], modules_to_save=["crisp_learned"]),
    )
    crisp.sparsify(kept, METHOD.with_sparsity(0.5))


def test_a_sparsity_of_a_schedule_can_be_written_and_read() -> None:
    early = SparseLinear(0.2, block_size=16).with_sparsity(0.05)
    assert early.spec == "sparse_linear:sparsity=0.05:block_size=16"
    assert crisp.parse(early.spec) == early


def test_the_projection_is_float32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = crisp.sparsify(distilbert(), METHOD)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {each.dtype for each in projections(model).values()} == {torch.float32}


def test_no_queries_give_no_output() -> None:
    states = torch.ones(1, 2, 64, 16)
    found = crisp.attention(states[:, :, :0], states, states, SparseLinear(0.3, block_size=16, combine="sum"))
    assert found.shape == (1, 2, 0, 16)
