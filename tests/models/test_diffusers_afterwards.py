"""What is done to a sparse transformer of diffusers afterwards: IP-Adapters, offloading, regional compilation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crisp_attention as crisp
from crisp_attention import TopK
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.sparse_model import SparseModel
from tests.models.diffusion import FAMILIES, TEXT, built, normal, run

IMAGE = 16  # tokens of the tiny models


def flux_adapters(model: nn.Module, scale: float) -> Callable[[int], dict[str, Any]]:
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    width = {"hidden_size": 16, "cross_attention_dim": 12}
    processors = {
        name: each if "single" in name else FluxIPAdapterAttnProcessor(**width, scale=scale)
        for name, each in model.attn_processors.items()
    }
    model.set_attn_processor(processors)
    return lambda tokens: {"ip_hidden_states": [normal(2, tokens, 12, seed=3)]}


def sd3_adapters(model: nn.Module, scale: float) -> Callable[[int], dict[str, Any]]:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    model.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_0(16, 12, 8, timesteps_emb_dim=6, scale=scale)
            for name in model.attn_processors
        }
    )
    return lambda tokens: {
        "ip_hidden_states": normal(2, tokens, 12, seed=3),
        "temb": normal(2, 6, seed=4),
    }


ADAPTERS = {"Flux": flux_adapters, "SD3": sd3_adapters}


def calls_of(model: nn.Module, name: str, **given: Any) -> tuple[Tensor, list[tuple[str, int, int]]]:
    """The output, and the name, queries and keys of every attention that a method computed."""
    seen: list[tuple[str, int, int]] = []
    with borrowed(model, observe=lambda s, _, each: seen.append((s.name, *each.scores.shape[-2:]))):
        output = run(model, name, **given)
    return output, seen


@pytest.mark.parametrize("tokens", [4, IMAGE, 40])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_for_images_read_their_own_keys_densely(name: str, tokens: int) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    alone, before = calls_of(model, name)
    torch.manual_seed(2)
    inputs = ADAPTERS[name](model, scale=0.0)(tokens)
    assert run(model, name, joint_attention_kwargs=inputs).equal(alone)
    torch.manual_seed(2)
    inputs = ADAPTERS[name](model, scale=1.0)(tokens)
    output, after = calls_of(model, name, joint_attention_kwargs=inputs)
    assert not torch.allclose(output, alone, atol=1e-3)
    assert after == before
    assert {each[1:] for each in after} == {(IMAGE + TEXT, IMAGE + TEXT)}
    crisp.set_sparsity(model, 0.0)
    assert not torch.allclose(run(model, name, joint_attention_kwargs=inputs), output, atol=1e-3)


def test_both_calls_of_cross_attention_to_text_and_image_are_sparse_if_chosen() -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=8, ffn_dim=16, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32, image_dim=12,
        added_kv_proj_dim=24,
    ).eval()  # fmt: skip
    given = FAMILIES["Wan"].inputs(2) | {
        "encoder_hidden_states": normal(2, 512, 12, seed=1),
        "encoder_hidden_states_image": normal(2, 6, 12, seed=2),
    }
    seen: list[tuple[str, tuple[int, ...]]] = []

    def observe(settings, _, each) -> None:
        kept = each.keep.sum(-1).unique().tolist()
        seen.append((settings.name, each.scores.shape[-1], *kept))

    crisp.sparsify(model, TopK(0.5))
    with borrowed(model, observe=observe), torch.no_grad():
        model(**given)
    crisp.sparsify(model, TopK(0.5), attention="cross")
    with borrowed(model, observe=observe), torch.no_grad():
        model(**given)
    assert seen == [
        ("blocks.0.attn1", 16, 8), ("blocks.0.attn2", 6, 6), ("blocks.0.attn2", 512, 512),
        ("blocks.0.attn1", 16, 16), ("blocks.0.attn2", 6, 3), ("blocks.0.attn2", 512, 256),
    ]  # fmt: skip


def test_two_self_attentions_of_one_block_are_both_sparse() -> None:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip
    _, seen = calls_of(crisp.sparsify(model, TopK(0.5)), "SD3")
    assert seen == [
        ("transformer_blocks.0.attn", IMAGE + TEXT, IMAGE + TEXT),
        ("transformer_blocks.0.attn2", IMAGE, IMAGE),
        ("transformer_blocks.1.attn", IMAGE + TEXT, IMAGE + TEXT),
    ]


def leaves_on_the_cpu(model: nn.Module) -> None:
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def sequentially(model: nn.Module) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))


def as_a_whole(model: nn.Module) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [leaves_on_the_cpu, sequentially, as_a_whole])
@pytest.mark.parametrize("name", ["PixArt", "Flux"])
def test_hooks_that_offload_keep_it_sparse(name: str, offload: Callable[[nn.Module], None]) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    sparse, calls = calls_of(model, name)
    offload(model)
    again, calls_again = calls_of(model, name)
    assert again.equal(sparse)
    assert calls_again == calls
    assert [each[0] for each in calls] == [layer.name for layer in SparseModel.of(model).layers]
    assert not torch.allclose(run(crisp.densify(model), name), sparse, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_repeated_blocks_are_compiled_sparse(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    wanted, graphs = run(model, name), []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend=keep)
    torch.testing.assert_close(run(model, name), wanted, rtol=1e-4, atol=1e-4)
    nodes = [str(node.target) for each in graphs for node in each.graph.nodes if node.op == "call_function"]
    left = sum("scaled_dot_product_attention" in each for each in nodes)
    dense = len(SparseModel.of(model).layers) - len(SparseModel.of(model).methods)
    assert graphs
    assert left <= dense


@pytest.mark.parametrize("name", ["DiT", "SD3"])
def test_guidance_without_a_classifier_is_two_passes_in_one(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(0.5))
    given = FAMILIES[name].inputs(1)
    other = {"encoder_hidden_states": torch.zeros(1, TEXT, 12), "class_labels": torch.tensor([9])}
    without = {**given, **{key: value for key, value in other.items() if key in given}}
    together = {key: torch.cat([given[key], without[key]]) for key in given if isinstance(given[key], Tensor)}
    with torch.no_grad():
        both = model(**together, return_dict=False)[0]
        for got, each in zip(both, (given, without), strict=True):
            torch.testing.assert_close(got, model(**each, return_dict=False)[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["DiT", "Flux"])
def test_a_profile_and_a_schedule_are_those_of_any_model(name: str) -> None:
    model, given = built(name), FAMILIES[name].inputs(2)
    profile = crisp.profile(model, [given])
    crisp.sparsify(model, profile.recommend(sparsity=0.5))
    reached = SparseModel.of(model).methods
    assert len(reached) == len(SparseModel.of(model).layers)
    crisp.sparsify(model, TopK(0.0))
    for step in range(4):
        crisp.set_sparsity(model, crisp.Schedule(final=0.8)(step / 3))
    assert set(SparseModel.of(model).sparsity.values()) == {0.8}
