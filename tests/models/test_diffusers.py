"""Transformers of diffusers, of all generations of its attention: sparse, trained, saved and loaded."""

import logging

import pytest
import torch
from peft import LoraConfig

import crisp_attention as crisp
from crisp_attention import Entmax, TopK
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.sparse_model import SparseModel
from tests.models import by_hand
from tests.models.by_hand import nothing_is_left
from tests.models.diffusion import FAMILIES, TEXT, built, run
from tests.models.tiny import distilbert

every = pytest.mark.parametrize("name", FAMILIES)


@every
def test_it_is_sparse_where_it_attends_to_itself_and_dense_again(name: str) -> None:
    model, dense = built(name), run(built(name), name)
    crisp.sparsify(model, TopK(0.5))
    sparse = run(model, name)
    assert (sparse - dense).abs().max() > 0.01
    with crisp.measuring(model) as seen:
        run(model, name)
    table, own = seen.table(), set(SparseModel.of(model).methods)
    assert set(table["name"]) >= own
    mine = table[table["name"].isin(own)]
    # text sees everything and is seen by all: half of the others' keys are dropped
    whole, others = FAMILIES[name].tokens, FAMILIES[name].tokens - (TEXT if FAMILIES[name].text else 0)
    share = others * (others // 2) / whole**2
    assert mine["sparsity"].tolist() == pytest.approx([share] * len(mine), abs=1e-6)
    assert crisp.set_sparsity(model, 0.0) is None
    assert run(model, name).equal(dense)
    crisp.densify(model)
    assert run(model, name).equal(dense)
    assert nothing_is_left(model)
    assert "crisp_attention" not in model.config


@pytest.mark.parametrize("make", [lambda: built("Flux"), distilbert, by_hand.built])
def test_a_step_of_a_schedule_looks_for_no_model_of_any_library(make, walks) -> None:
    model = crisp.sparsify(make(), TopK(0.8))
    walks.clear()
    crisp.set_sparsity(model, 0.25)
    assert walks == []
    assert set(SparseModel.of(model).sparsity.values()) == {0.25}


@every
def test_an_example_alone_is_the_example_in_a_batch(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    both, alone = run(model, name, batch=2), run(model, name, batch=1)
    torch.testing.assert_close(both[:1].float(), alone.float(), rtol=0, atol=2e-3 * alone.abs().max().item())


@every
def test_autocast_decides_the_precision_of_sparse_layers_too(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    seen: list[torch.dtype] = []
    with (
        borrowed(model, observe=lambda s, m, each: seen.append(each.value.dtype)),
        torch.autocast("cpu", torch.bfloat16),
    ):
        sparse = run(model, name)
    assert set(seen) == {torch.bfloat16}
    whole = run(model, name)
    assert (sparse - whole).abs().max() < 0.1 * whole.abs().max()
    crisp.set_sparsity(model, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model, name).equal(run(built(name), name))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=pytest.mark.slow if each in ("PixArt", "CogVideoX") else ())
        for each in FAMILIES
    ],
)
def test_it_is_trained_saved_and_loaded(name: str, tmp_path, caplog) -> None:
    model = crisp.sparsify(built(name), Entmax("learned")).train()
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing()
    run(model, name).square().mean().backward()
    learned = {n: each for n, each in model.named_parameters() if "crisp_learned" in n}
    assert learned
    assert all(each.grad.isfinite().all() and each.grad.abs().sum() > 0 for each in learned.values())
    with torch.no_grad():
        for each in learned.values():
            each.add_(0.2)
    model.eval().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        again = crisp.load(tmp_path).eval()
    assert "crisp" not in caplog.text
    assert run(again, name).equal(run(model, name))
    with pytest.warns(crisp.SparseCheckpointLoadedDense, match=r"crisp_attention\.load\(path\) does") as told:
        dense = type(model).from_pretrained(tmp_path)
    assert [each.filename for each in told if each.category is crisp.SparseCheckpointLoadedDense] == [
        __file__
    ]
    assert not crisp.is_sparse(dense)
    crisp.restore(dense)
    assert run(dense, name).equal(run(model, name))


def test_only_safetensors_are_read_and_a_variant_has_its_own_parameters(tmp_path) -> None:
    model = crisp.sparsify(built("DiT"), Entmax("learned"))
    for share, where in ((0.3, {"variant": "ema"}), (0.1, {})):
        for name, each in model.named_parameters():
            if "crisp_learned" in name:
                each.data.fill_(share)
        model.save_pretrained(tmp_path / "both", **where)
    assert run(crisp.load(tmp_path / "both").eval(), "DiT").equal(run(model, "DiT"))
    ema = crisp.load(tmp_path / "both", variant="ema")
    learned = torch.cat([each.flatten() for name, each in ema.named_parameters() if "crisp_learned" in name])
    assert learned.unique().tolist() == pytest.approx([0.3])
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(crisp.CheckpointError, match="safetensors"):
        crisp.load(tmp_path / "pickled")
    with pytest.raises(crisp.CheckpointError, match="cannot be read as a pipeline"):
        crisp.load_pipeline(tmp_path / "both")


@every
@pytest.mark.slow
def test_it_compiles_into_one_graph_in_which_it_is_sparse(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    wanted = run(model, name)
    compiled = torch.compile(model, fullgraph=True, backend=keep)
    torch.testing.assert_close(run(compiled, name), wanted, rtol=1e-4, atol=1e-4)
    own = len(SparseModel.of(model).methods)
    calls = [str(node.target) for each in graphs for node in each.graph.nodes if node.op == "call_function"]
    left = sum("scaled_dot_product_attention" in each for each in calls)
    assert left == len(SparseModel.of(model).layers) - own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD3", "Flux", "Wan", "CogVideoX"])
def test_adapters_are_trained_saved_and_merged_on_a_sparse_model(name: str, tmp_path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    model = crisp.sparsify(built(name), TopK(0.5))
    before = run(model, name)
    model.add_adapter(config)
    for each in (p for n, p in model.named_parameters() if "lora_B" in n):
        torch.nn.init.normal_(each, std=0.3)
    run(model, name).square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora" in n)
    tuned = run(model, name)
    assert not torch.allclose(tuned, before, atol=1e-3)
    model.save_lora_adapter(tmp_path)
    again = crisp.sparsify(built(name), TopK(0.5))
    again.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(run(again, name), tuned)
    again.fuse_lora()
    again.unload_lora()
    torch.testing.assert_close(run(again, name), tuned, rtol=1e-3, atol=1e-3)
    dense = crisp.densify(again)
    assert not torch.allclose(run(dense, name), tuned, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD3", "Flux", "CogVideoX"])
def test_projections_fused_afterwards_keep_it_sparse(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    sparse = run(model, name)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, name), sparse, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sparse, run(built(name), name), atol=1e-3)


def test_a_backend_that_does_not_call_torchs_attention_is_not_run_in_silence(monkeypatch) -> None:
    from diffusers.models import attention_dispatch

    model = crisp.sparsify(built("Flux"), TopK(0.5))
    attention = attention_dispatch._AttentionBackendRegistry._backends
    key = next(each for each in attention if str(getattr(each, "value", each)) == "native")
    monkeypatch.setitem(attention, key, lambda query, *given, **named: query)
    with pytest.raises(
        RuntimeError, match=r"did not call torch's scaled_dot_product_attention.* may be active"
    ):
        run(model, "Flux")


def test_a_pipeline_comes_back_with_the_transformer_sparse_and_nothing_else(tmp_path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    pipe = DiTPipeline(built("DiT"), vae, DDIMScheduler())
    crisp.sparsify(pipe.transformer, TopK(0.5))
    pipe.save_pretrained(tmp_path)
    again = crisp.load_pipeline(tmp_path)
    assert run(again.transformer.eval(), "DiT").equal(run(pipe.transformer, "DiT"))
    assert crisp.is_sparse(again.transformer)
    assert not crisp.is_sparse(again.vae)
    with pytest.warns(crisp.SparseCheckpointLoadedDense, match=r"load_pipeline\(path\) for a pipeline"):
        assert not crisp.is_sparse(DiTPipeline.from_pretrained(tmp_path).transformer)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(
        crisp.CheckpointError, match=r"cannot make transformer in .* must be of version 1, found 99"
    ):
        crisp.load_pipeline(tmp_path)


@pytest.mark.parametrize("name", ["SD3", "Flux", "CogVideoX"])
def test_the_tokens_of_the_text_stay_dense_unless_they_are_to_be_chosen_among(name: str, tmp_path) -> None:
    model, seen = crisp.sparsify(built(name), TopK(0.75)), []
    with borrowed(model, observe=lambda settings, _, each: seen.append(each)):
        run(model, name)
    family = FAMILIES[name]
    text = slice(0, TEXT) if family.text == "first" else slice(family.tokens - TEXT, family.tokens)
    others = slice(TEXT, family.tokens) if family.text == "first" else slice(0, family.tokens - TEXT)
    assert len(seen) == len(SparseModel.of(model).layers)
    for each in seen:
        assert each.keep[:, :, text].all()
        assert each.keep[..., text].all()
        count = family.tokens - TEXT
        assert (each.keep[:, :, others, others].sum(-1) == -(-count // 4)).all()
        least = (
            each.scores[:, :, others, others]
            .masked_fill(~each.keep[:, :, others, others], torch.inf)
            .amin(-1)
        )
        most = (
            each.scores[:, :, others, others]
            .masked_fill(each.keep[:, :, others, others], -torch.inf)
            .amax(-1)
        )
        assert (least >= most).all()
    rows = [row for row in crisp.explain(model).rows if row.method != "dense"]
    assert {row.kernel for row in rows} == {"reference"}
    apart = run(model, name)
    crisp.sparsify(model, TopK(0.75), dense_tokens=None)
    among_all = run(model, name)
    assert not torch.allclose(apart, among_all, atol=1e-3)
    model.save_pretrained(tmp_path)
    assert run(crisp.load(tmp_path).eval(), name).equal(among_all)
    with pytest.raises(ValueError, match="dense_tokens must be 'text' or None, got 'image'"):
        crisp.sparsify(model, TopK(0.75), dense_tokens="image")
