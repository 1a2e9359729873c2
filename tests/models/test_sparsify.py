"""Making models sparse and dense again: which layers, when, and nothing else touched."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface

import crisp_attention as crisp
from crisp_attention import Dense, RandomK, TopK, Window
from crisp_attention.models.sparse_model import SparseModel
from tests.models.tiny import BATCH, bart, distilbert, layers_of, logits, sparsity_of


def sparsities(model) -> list[float | None]:
    by_name = sparsity_of(model)
    return [by_name.get(layer.name) for layer in layers_of(model)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0.8, 0.8, 0.8, 0.8]),
        ([2, 3], [None, None, 0.8, 0.8]),
        (["1-2"], [None, 0.8, 0.8, None]),
        (["*.layer.3.*"], [None, None, None, 0.8]),
        (["0", "*.layer.3.*"], [0.8, None, None, 0.8]),
    ],
)
def test_layers_are_chosen_by_index_range_or_pattern(layers, expected):
    assert sparsities(crisp.sparsify(distilbert(), TopK(0.8), layers=layers)) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"*": TopK(0.8), "0": Dense()}, [None, 0.8, 0.8, 0.8]),
        ({0: Dense(), "*": TopK(0.8)}, [None, 0.8, 0.8, 0.8]),
        ({"*": TopK(0.8), "*.layer.[01].*": TopK(0.5), "1-2": TopK(0.3)}, [0.5, 0.3, 0.3, 0.8]),
    ],
)
def test_an_index_beats_a_pattern_and_a_pattern_beats_the_star(layers, expected):
    assert sparsities(crisp.sparsify(distilbert(), layers=layers)) == expected


def test_layers_that_were_not_chosen_stay_as_they_were():
    model, own = distilbert(), logits(distilbert())
    crisp.sparsify(model, TopK(0.9), layers=[3])
    with crisp.measuring(model) as measured:
        some = logits(model)
    by_layer = measured.table().groupby("layer")["sparsity"].mean()
    assert (by_layer[:3] == 0).all()
    assert by_layer[3] > 0.5
    assert not torch.equal(some, own)


@pytest.mark.parametrize(("phase", "training"), [("train", True), ("eval", False)])
def test_a_phase_is_sparse_in_training_or_in_evaluation_only(phase, training):
    model = distilbert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in layers_of(model):
        layer.module.dropout_p = 0.0
    dense = logits(model)
    crisp.sparsify(model, TopK(0.8), phase=phase)
    model.train(training)
    assert not torch.allclose(logits(model), dense, atol=1e-5)
    model.train(not training)
    torch.testing.assert_close(logits(model), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "names"),
    [("self", {"self_attn"}), ("cross", {"encoder_attn"}), ("all", {"self_attn", "encoder_attn"})],
)
def test_attention_chooses_between_self_and_cross(attention, names):
    model = crisp.sparsify(bart(), TopK(0.5), attention=attention)
    assert {name.split(".")[-1] for name in sparsity_of(model)} == names


def test_doing_it_again_replaces_what_was_set():
    model = crisp.sparsify(distilbert(), TopK(0.8))
    crisp.sparsify(model, TopK(0.5), layers=[1])
    assert sparsities(model) == [None, 0.5, None, None]
    assert torch.equal(logits(crisp.densify(model)), logits(distilbert()))


def test_a_part_then_the_whole_then_dense():
    model = distilbert()
    config = model.config.to_dict()
    crisp.sparsify(model.distilbert, TopK(0.8))
    crisp.sparsify(model, TopK(0.5))
    assert sparsities(model) == [0.5] * 4
    with pytest.raises(ValueError, match="part of a larger sparse model"):
        crisp.densify(model.distilbert)
    crisp.densify(model)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model), logits(distilbert()))


def test_the_implementation_a_model_had_comes_back():
    model = distilbert()
    model.set_attn_implementation("eager")
    crisp.densify(crisp.sparsify(model, TopK(0.8)))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_sparse_on_its_own(duplicate):
    model = crisp.sparsify(distilbert(), TopK(0.8))
    twin = duplicate(model)
    assert torch.equal(logits(twin), logits(model))
    crisp.set_sparsity(twin, 0.3)
    assert sparsities(model) == [0.8] * 4
    crisp.densify(twin)
    assert torch.equal(logits(twin), logits(distilbert()))
    assert sparsities(model) == [0.8] * 4


def test_other_models_are_untouched():
    other = distilbert()
    before, implementations = logits(other), dict(AttentionInterface._global_mapping)
    crisp.sparsify(distilbert(), TopK(0.8))
    assert torch.equal(logits(other), before)
    assert dict(AttentionInterface._global_mapping) == implementations
    assert other.config._attn_implementation == "sdpa"


def test_set_sparsity_reaches_every_layer_that_has_one():
    model = crisp.sparsify(distilbert(), layers={"*": TopK(0.8), "0": Window(3), "1": RandomK(0.5)})
    crisp.set_sparsity(model, np.float32(0.25))
    assert sparsities(model) == [None, 0.25, 0.25, 0.25]
    assert (
        model.config.crisp_attention["layers"]["distilbert.transformer.layer.3.attention"]["rule"]["sparsity"]
        == 0.25
    )


def test_a_step_of_a_schedule_looks_at_the_sparse_layers_only(walks):
    model = crisp.sparsify(distilbert(), layers={"1-3": TopK(0.8)})
    list(model.modules())
    assert walks
    walks.clear()
    crisp.set_sparsity(model, 0.25)
    assert sparsity_of(model) == dict.fromkeys(
        [layer.name for layer in SparseModel.of(model).layers[1:]], 0.25
    )
    assert walks == []


def test_layers_that_were_taken_out_or_renamed_are_not_recorded():
    model = crisp.sparsify(distilbert(), TopK(0.8))
    layers = model.distilbert.transformer.layer
    model.distilbert.transformer.layer = nn.ModuleList([layers[0], layers[3]])
    crisp.set_sparsity(model, 0.25)
    names = [f"distilbert.transformer.layer.{i}.attention" for i in (0, 1)]
    assert sparsity_of(model) == dict.fromkeys(names, 0.25)
    assert list(model.config.crisp_attention["layers"]) == names
    crisp.densify(model)
    assert logits(model).isfinite().all()


def test_is_sparse():
    model = distilbert()
    assert not crisp.is_sparse(model)
    with crisp.measuring(model):
        assert not crisp.is_sparse(model)
    crisp.sparsify(model.distilbert, TopK(0.5))
    assert crisp.is_sparse(model)
    crisp.sparsify(model, TopK(0.5))
    assert crisp.is_sparse(nn.Sequential(model))
    assert crisp.is_sparse(model.distilbert)
    assert not crisp.is_sparse(crisp.densify(model))


def test_training_draws_random_keys_anew_and_evaluation_does_not():
    model = crisp.sparsify(distilbert(), RandomK(0.7))
    assert torch.equal(logits(model), logits(model))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.equal(logits(model), logits(model))
    torch.manual_seed(5)
    first = logits(model)
    torch.manual_seed(5)
    assert torch.equal(logits(model), first)


def test_dropout_in_training_is_that_of_eager_attention():
    model = distilbert().train()
    model.set_attn_implementation("eager")
    torch.manual_seed(7)
    eager = logits(model)
    crisp.sparsify(model, TopK(0.0), backend="reference")
    torch.manual_seed(7)
    assert torch.equal(logits(model), eager)


def test_attention_weights_are_returned_when_asked_for():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    attentions = model(**BATCH, output_attentions=True).attentions
    assert len(attentions) == 4
    assert ((attentions[0][0] > 0).sum(dim=-1) == 4).all()


def test_inside_a_wrapper_the_model_is_found():
    model = distilbert()
    wrapper = nn.Sequential(model)
    assert crisp.sparsify(wrapper, TopK(0.5)) is wrapper
    assert sparsities(model) == [0.5] * 4
    crisp.densify(wrapper)


def refuses(error, message, *args, model=None, **kwargs):
    with pytest.raises(error, match=message):
        crisp.sparsify(distilbert() if model is None else model, *args, **kwargs)


def test_bad_arguments_are_refused_with_expected_and_actual():
    refuses(TypeError, "a method is needed.*got None")
    refuses(TypeError, "expected a method.*got 0.8", 0.8)
    refuses(TypeError, "not both", TopK(0.5), layers={"*": TopK(0.5)})
    refuses(TypeError, "write \\[2\\]", TopK(0.5), layers=2)
    refuses(ValueError, "empty", TopK(0.5), layers=[])
    refuses(
        ValueError, "no layer matched 4; the layers are: 0 distilbert.*3 distilbert", TopK(0.5), layers=[4]
    )
    refuses(ValueError, "no layer matched 'encoder", TopK(0.5), layers=["encoder.*"])
    refuses(ValueError, "phase must be one of always, train, eval, got 'never'", TopK(0.5), phase="never")
    refuses(ValueError, "attention must be one of self, cross, all, got 'none'", TopK(0.5), attention="none")
    refuses(ValueError, "no cross-attention", TopK(0.5), attention="cross")
    refuses(ValueError, "outside attention='self'", TopK(0.5), model=bart(), layers=["*encoder_attn"])
    refuses(ValueError, "cross-attention does not have", RandomK(0.5), model=bart(), attention="all")
    refuses(ValueError, "cross-attention does not have", Window(3), model=bart(), attention="cross")
    refuses(
        TypeError,
        "expected a model of diffusers or transformers.*Linear holds none",
        TopK(0.5),
        model=nn.Linear(2, 2),
    )
    with pytest.raises(ValueError, match="not sparse"):
        crisp.densify(distilbert())
    with pytest.raises(ValueError, match="no layer has a method with a sparsity"):
        crisp.set_sparsity(crisp.sparsify(distilbert(), Window(3)), 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.5"):
        crisp.set_sparsity(crisp.sparsify(distilbert(), TopK(0.5)), 1.5)


def test_a_refusal_leaves_the_model_as_it_was():
    model = crisp.sparsify(distilbert(), TopK(0.8))
    with pytest.raises(ValueError, match="no layer matched"):
        crisp.sparsify(model, TopK(0.5), layers=[9])
    with pytest.raises(ValueError, match=r"got 1\.5"):
        crisp.set_sparsity(model, 1.5)
    for nothing in (None, "0.5", True):
        with pytest.raises(TypeError, match=r"sparsity must be a number in \[0, 1\)"):
            crisp.set_sparsity(model, nothing)
    assert sparsities(model) == [0.8] * 4


def test_an_argument_that_could_change_the_mathematics_is_refused():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    with pytest.raises(NotImplementedError, match="DistilBertSelfAttention passes cache to its attention"):
        model(**BATCH, cache=object())


def test_models_built_from_one_config_do_not_share_their_sparsity():
    one = distilbert()
    other = type(one)(one.config).eval()
    other.load_state_dict(one.state_dict())
    dense = logits(other)
    crisp.sparsify(one, TopK(0.5))
    assert torch.equal(logits(other), dense)
    assert not hasattr(other.config, "crisp_attention")
    crisp.sparsify(other, TopK(0.8))
    crisp.densify(one)
    assert torch.equal(logits(one), dense)
    assert not torch.equal(logits(other), dense)
    assert sparsities(other) == [0.8] * 4


def test_two_parts_of_one_model_are_sparse_and_dense_on_their_own():
    model = bart()
    encoder, decoder = model.model.encoder, model.model.decoder
    crisp.sparsify(encoder, TopK(0.5))
    crisp.sparsify(decoder, TopK(0.7))
    crisp.densify(encoder)
    assert set(sparsity_of(decoder).values()) == {0.7}
    crisp.densify(decoder)
    assert model.config._attn_implementation == encoder.config._attn_implementation == "sdpa"


def test_a_part_of_a_sparse_model_is_changed_through_the_model():
    model = crisp.sparsify(distilbert(), TopK(0.8))
    with pytest.raises(ValueError, match=r"part of a larger sparse model: call crisp.sparsify on that one"):
        crisp.sparsify(model.distilbert, TopK(0.5))
    assert sparsities(model) == [0.8] * 4


def test_another_implementation_set_afterwards_is_noticed():
    model = crisp.sparsify(distilbert(), TopK(0.8))
    model.set_attn_implementation("sdpa")
    for use in (crisp.densify, sparsity_of, lambda m: crisp.set_sparsity(m, 0.5)):
        with pytest.raises(ValueError, match=r"was set to 'sdpa' after crisp\.sparsify"):
            use(model)
    crisp.sparsify(model, TopK(0.5))
    assert sparsities(model) == [0.5] * 4
    assert torch.equal(logits(crisp.densify(model)), logits(distilbert()))


def test_attention_weights_of_layers_that_stay_dense_are_returned_too():
    model = crisp.sparsify(distilbert(), TopK(0.5), layers=[3])
    attentions = model(**BATCH, output_attentions=True).attentions
    assert [(a[0, :, 0] > 0).sum(dim=-1).tolist() for a in attentions] == [[8, 8]] * 3 + [[4, 4]]


def test_a_layer_that_was_added_to_a_sparse_model_is_not_dense_without_a_word():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    layers = model.distilbert.transformer.layer
    layers.append(type(layers[0])(model.config).eval())
    with pytest.raises(ValueError, match=r"no Crisp settings.*crisp_attention\.sparsify"):
        logits(model)
    crisp.sparsify(model, TopK(0.5))
    assert sparsities(model) == [0.5] * 5
    assert logits(model).isfinite().all()
    crisp.densify(model)
    layers.pop(4)
    assert torch.equal(logits(model), logits(distilbert()))
