"""Models of transformers that call torch's attention functions themselves, past its attention interface."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import crisp_attention as crisp
from crisp_attention import Entmax, TopK
from tests.models.by_hand import nothing_is_left
from tests.models.tiny import distilbert


def falcon(**given) -> nn.Module:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(
        FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, **given)
    )


def data2vec_vision() -> nn.Module:
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    return Data2VecVisionForImageClassification(
        Data2VecVisionConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16,
            patch_size=4, use_relative_position_bias=True,
        )
    )  # fmt: skip


def sam() -> nn.Module:
    from transformers import SamVisionConfig, SamVisionModel

    return SamVisionModel(
        SamVisionConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, mlp_dim=16,
            output_channels=8, global_attn_indexes=[1], window_size=2,
            initializer_range=0.3,
        )
    )  # fmt: skip


def wavlm() -> nn.Module:
    from transformers import WavLMConfig, WavLMForSequenceClassification

    return WavLMForSequenceClassification(
        WavLMConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
            conv_kernel=(3, 3), conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip


RANDOM = torch.Generator().manual_seed(1)
IDS = torch.randint(1, 32, (2, 9), generator=RANDOM)
PIXELS = {"pixel_values": torch.randn(2, 3, 16, 16, generator=RANDOM)}
SOUND = {"input_values": torch.randn(2, 200, generator=RANDOM)}
FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "Falcon": (falcon, {"input_ids": IDS}),
    "Falcon with grouped heads": (
        lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
        {"input_ids": IDS},
    ),
    "Falcon with ALiBi": (
        lambda: falcon(alibi=True),
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
    ),
    "Data2Vec-Vision": (data2vec_vision, PIXELS),
    "SAM's encoder": (sam, PIXELS),
    "WavLM": (wavlm, SOUND),
}
every = pytest.mark.parametrize("name", FAMILIES)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[name][0]()
    for each in model.modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            nn.init.normal_(each.weight, std=0.3)
    return model.eval()


def run(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model(**FAMILIES[name][1])[0]


@every
def test_it_is_sparse_and_dense_again(name: str) -> None:
    model, dense = built(name), run(built(name), name)
    crisp.sparsify(model, TopK(0.7))
    assert (run(model, name) - dense).abs().max() > 1e-3
    crisp.set_sparsity(model, 0.0)
    assert run(model, name).equal(dense)
    crisp.set_sparsity(model, 0.7)
    with crisp.measuring(model) as seen:
        run(model, name)
    assert seen.table()["sparsity"].between(0.5, 0.75).all()
    crisp.densify(model)
    assert run(model, name).equal(dense)
    assert nothing_is_left(model)
    assert not hasattr(model.config, "crisp_attention")


@every
def test_it_is_saved_and_loaded_with_what_it_learned(name: str, tmp_path) -> None:
    model = crisp.sparsify(built(name), Entmax("learned"))
    learned = [each for n, each in model.named_parameters() if "crisp_learned" in n]
    model(**FAMILIES[name][1])[0].square().sum().backward()
    assert all(each.grad.isfinite().all() and each.grad.abs().sum() > 0 for each in learned)
    with torch.no_grad():
        for each in learned:
            each.add_(0.2)
    model.save_pretrained(tmp_path)
    again = crisp.load(tmp_path).eval()
    assert crisp.is_sparse(again)
    assert run(again, name).equal(run(model, name))


@pytest.mark.parametrize("name", [each for each in FAMILIES if "Falcon" in each])
def test_a_decoder_generates_with_a_cache_and_does_not_see_padding(name: str) -> None:
    model = crisp.sparsify(built(name), TopK(keep=3))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = model.generate(IDS[:1], use_cache=True, **options)
    assert alone.equal(model.generate(IDS[:1], use_cache=False, **options))
    padded = torch.cat([torch.zeros(1, 3, dtype=IDS.dtype), IDS[:1]], dim=1)
    beside = torch.cat([padded, IDS.new_full((1, 12), 7)])
    both = model.generate(beside, attention_mask=(beside != 0).long(), use_cache=True, **options)
    assert both[0, 3:].equal(alone[0])


def test_attention_that_another_implementation_computes_is_not_silently_dense() -> None:
    model = crisp.sparsify(built("Falcon"), TopK(0.7))
    with pytest.raises(
        RuntimeError, match="FalconAttention did not call torch's scaled_dot_product_attention"
    ):
        model(IDS, output_attentions=True)


def test_a_model_that_was_loaded_without_torchs_attention_is_refused_with_the_reason() -> None:
    from transformers import Data2VecVisionConfig, Data2VecVisionModel

    config = Data2VecVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config._attn_implementation = "eager"
    with pytest.raises(ValueError, match=r"'data2vec-vision'.*as it was loaded .*'eager'"):
        crisp.sparsify(Data2VecVisionModel(config), TopK(0.7))


def test_a_model_that_looks_up_another_attention_is_refused_before_it_runs() -> None:
    model = falcon()
    model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match=r"'eager', .* load it with attn_implementation='sdpa'"):
        crisp.sparsify(model, TopK(0.7))
    assert nothing_is_left(model)


def test_inputs_are_for_models_past_the_interface() -> None:
    model = crisp.sparsify(built("WavLM"), TopK(0.7), inputs=SOUND)
    assert [row.name for row in crisp.explain(model).rows] == [
        f"wavlm.encoder.layers.{i}.attention" for i in range(2)
    ]
    with pytest.raises(TypeError, match="not for transformers's"):
        crisp.sparsify(distilbert(), TopK(0.7), inputs=IDS)
