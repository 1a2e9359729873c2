"""One dense pass: what it says is what a method keeps, and the model is what it was."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, TopK
from tests.contract.families import UNSUPPORTED, available, inputs
from tests.models.tiny import BATCH, bart, distilbert, layers_of, settings_in

FAMILIES = {family.name: family for family in available()}
# encoder, grouped heads, bias, softcap and sliding window, sinks, images, windows of images, cross-attention
KINDS = ["bert", "llama", "gemma2", "gpt_oss", "vit", "swin", "bart", "whisper", "t5"]
KINDS = [name for name in KINDS if name in FAMILIES]


def padded(batch: dict, extra: int) -> dict:
    return {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, extra), value=1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, extra)),
    }


def same(one: crisp.Profile, other: crisp.Profile, tolerance: float = 1e-5) -> None:
    for mine, theirs in ((one.table(), other.table()), (one.curves(), other.curves())):
        numbers = mine.select_dtypes("number").columns
        expected = theirs[numbers].to_numpy(dtype=float)
        assert mine[numbers].to_numpy(dtype=float) == pytest.approx(expected, rel=tolerance, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, TopK(0.6)) for name in KINDS),
        *((name, BlockTopK(0.6, block_size=3)) for name in ("bert", "llama", "bart")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_each_layer_keeps_what_the_method_keeps_in_that_layer_alone(name, method):
    model = FAMILIES[name].build()
    batch = inputs(FAMILIES[name], model, lengths=(9, 6), extra=0)
    found = crisp.profile(model, [batch], block_size=3).curves()
    found = found[(found["method"] == method.name) & (found["target"] == 0.6)].set_index("layer")
    layers = [each.index for each in layers_of(model) if method.name == "topk" or not each.cross]
    assert sorted(set(found.index)) == layers
    for layer in layers:  # the layers before it are dense, so it sees what the profile saw
        crisp.sparsify(model, method, layers=[layer], attention="all")
        with crisp.measuring(model) as measured, torch.no_grad():
            model(**batch)
        crisp.densify(model)
        table = measured.table().set_index("layer").loc[[layer]]
        assert (table["sparsity"] > 0).all()
        assert found.loc[[layer], "sparsity"].tolist() == pytest.approx(table["sparsity"].tolist(), rel=1e-12)
        assert found.loc[[layer], "mass"].tolist() == pytest.approx(table["kept_mass"].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if name in ("gemma2", "swin", "bart", "whisper")])
def test_entropy_is_that_of_measuring_and_only_cross_attention_has_no_distance(name):
    model = FAMILIES[name].build()
    batch = inputs(FAMILIES[name], model)
    table = crisp.profile(model, [batch]).table()
    with crisp.measuring(model) as measured, torch.no_grad():
        model(**batch)
    seen = measured.table()
    for column in ("layer", "name", "head", "rows"):
        assert table[column].tolist() == seen[column].tolist()
    assert table["entropy"].tolist() == pytest.approx(seen["entropy"].tolist(), rel=1e-4)
    cross = table["layer"].isin([each.index for each in layers_of(model) if each.cross])
    assert (table["distance"].isna() == cross).all()
    assert (table["block_topk_mass_80"].isna() == cross).all()
    assert (table.loc[~cross, "distance"] >= 0).all()


def test_batches_add_up_whatever_their_padding():
    model = distilbert()
    one, two = ({name: rows[i : i + 1] for name, rows in BATCH.items()} for i in (0, 1))
    together = crisp.profile(model, [BATCH], block_size=3)
    same(crisp.profile(model, [one, padded(two, 9)], block_size=3), together)
    same(crisp.profile(model, (batch for batch in [padded(BATCH, 4)]), block_size=3), together)
    assert (together.table()["rows"] == 8 + 5).all()


def test_padded_decoder_queries_do_not_count_in_cross_attention():
    decoder = {"decoder_input_ids": BATCH["input_ids"], "decoder_attention_mask": BATCH["attention_mask"]}
    table = crisp.profile(bart(), [BATCH | decoder]).table()
    assert (table["rows"] == 8 + 5).all()


def test_the_model_is_what_it_was():
    model = distilbert().train()
    model.distilbert.transformer.layer[1].eval()
    weights = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    crisp.profile(model, [BATCH])
    assert [module.training for module in model.modules()] == modes
    assert not settings_in(model)
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off():
    same(crisp.profile(distilbert().train(), [BATCH]), crisp.profile(distilbert(), [BATCH]), 1e-12)


@pytest.mark.parametrize("phase", ["always", "train"])
def test_a_sparse_model_is_profiled_dense_and_stays_sparse(phase):
    model = crisp.sparsify(distilbert(), layers={"0-2": TopK(0.9), "3": crisp.Entmax("learned")}, phase=phase)
    before = [(each.name, each.method, each.phase) for _, each in settings_in(model)]
    record, names = (
        copy.deepcopy(model.config.crisp_attention),
        [name for name, _ in model.named_parameters()],
    )
    same(crisp.profile(model, [BATCH]), crisp.profile(distilbert(), [BATCH]), 1e-12)
    assert [(each.name, each.method, each.phase) for _, each in settings_in(model)] == before
    assert model.config.crisp_attention == record
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(each.observers for _, each in settings_in(model))


@pytest.mark.parametrize("sparse", [False, True])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(sparse):
    def broken():
        yield BATCH
        raise KeyError

    model = distilbert().train()
    if sparse:
        crisp.sparsify(model, TopK(0.5))
    with pytest.raises(KeyError):
        crisp.profile(model, broken())
    assert model.training
    assert [each.method.sparsity for _, each in settings_in(model)] == ([0.5] * 4 if sparse else [])
    assert not any(each.observers for _, each in settings_in(model))


def test_labels_are_harmless():
    labels = {"labels": torch.tensor([7, 9])}  # classes that the head does not have
    same(crisp.profile(distilbert(), [BATCH | labels]), crisp.profile(distilbert(), [BATCH]), 1e-12)
    torch.manual_seed(0)
    bare = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    assert len(crisp.profile(bare, [BATCH | labels]).table()) == 2


def test_labels_make_the_input_of_a_decoder_that_has_no_other():
    table = crisp.profile(bart(), [{**BATCH, "labels": torch.tensor([[5, 6, 7], [8, 9, 10]])}]).table()
    decoder = table[table["name"].str.contains("decoder.layers.0.self_attn")]
    assert (decoder["rows"] == 6).all()


def test_wrapped_models_and_parts_of_sparse_models_are_profiled():
    wrapped = torch.nn.Sequential(distilbert())
    wrapped.forward = lambda **batch: wrapped[0](**batch)
    same(crisp.profile(wrapped, [BATCH]), crisp.profile(distilbert(), [BATCH]), 1e-12)
    part = crisp.sparsify(distilbert(), TopK(0.9)).distilbert
    found = crisp.profile(part, [BATCH])
    assert found.curves()["mass"].tolist() == crisp.profile(distilbert(), [BATCH]).curves()["mass"].tolist()


def test_further_sparsities_and_blocks():
    found = crisp.profile(distilbert(), [BATCH], block_size=2, sparsities=[0.33, 0.5])
    assert found.targets.sparsities.count(0.5) == 1
    assert 0.33 in found.targets.sparsities
    assert found.recommend(sparsity=0.33, method="block_topk").methods.keys() == set(found.names.values())


@pytest.mark.parametrize(
    ("batches", "how", "error", "message"),
    [
        ([], {}, ValueError, "nothing was profiled: the dataloader has no batch"),
        ([(BATCH["input_ids"],)], {}, TypeError, "mappings of the model's arguments, got tuple"),
        ([BATCH], {"block_size": 0}, ValueError, "block_size must be a whole number of at least 1, got 0"),
        ([BATCH], {"sparsities": [1.0]}, ValueError, r"sparsities must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_it_cannot_use(batches, how, error, message):
    model = distilbert()
    with pytest.raises(error, match=message):
        crisp.profile(model, batches, **how)
    assert not settings_in(model)


def test_a_model_outside_the_interface_is_refused_by_name():
    model = UNSUPPORTED[0].build()
    with pytest.raises(ValueError, match=type(model).__name__):
        crisp.profile(model, [BATCH])


@pytest.mark.parametrize("method", ["topk", "block_topk"])
@pytest.mark.parametrize("wanted", [{"sparsity": 0.6}, {"mass": 0.9}], ids=str)
def test_budgets_go_through_a_file_into_the_model(method, wanted, tmp_path):
    model, batches = distilbert(layers=1), [BATCH, padded(BATCH, 5)]
    found = crisp.profile(model, batches, block_size=3)
    budgets = found.recommend(**wanted, method=method)
    budgets.save(tmp_path / "budgets.json")
    again = crisp.budgets(tmp_path / "budgets.json")
    assert again == budgets
    crisp.sparsify(model, again)
    with crisp.measuring(model) as measured, torch.no_grad():
        for batch in batches:
            model(**batch)
    seen = measured.summary()
    assert seen["sparsity"] == pytest.approx(budgets.expected["sparsity"], rel=1e-12)
    assert seen["kept_mass"] == pytest.approx(budgets.expected["mass"], rel=1e-5)


def test_with_topk_the_achieved_sparsity_of_a_deep_model_is_exactly_what_was_expected():
    model = distilbert()
    budgets = crisp.profile(model, [BATCH]).recommend(sparsity=0.6)
    assert any(isinstance(method, crisp.PerHead) for method in budgets.methods.values())
    with crisp.measuring(crisp.sparsify(model, budgets)) as measured, torch.no_grad():
        model(**BATCH)
    assert measured.summary()["sparsity"] == pytest.approx(budgets.expected["sparsity"], rel=1e-12)


def test_budgets_of_cross_attention_are_for_topk_only():
    model = bart()
    found = crisp.profile(model, [BATCH])
    crisp.sparsify(model, found.recommend(sparsity=0.5))
    assert sum(each.method is not None for _, each in settings_in(model)) == 6
    blocks = found.recommend(sparsity=0.5, method="block_topk")
    assert not any("encoder_attn" in name for name in blocks.methods)
    with crisp.measuring(crisp.sparsify(model, blocks)) as measured, torch.no_grad():
        model(**BATCH)
    assert set(measured.table().query("name.str.contains('encoder_attn')")["method"]) == {"dense"}
    assert found.kept(Dense()) == (0, 1)
