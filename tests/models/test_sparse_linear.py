"""SLA in models: its projection is trained, saved, loaded and missed where it is missing; text stays as it is."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

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
