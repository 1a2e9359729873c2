"""Measuring: valid pairs only, once per pair, and free when off."""

import copy
import pickle

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import BlockTopK, TopK
from tests.models.tiny import BATCH, bart, distilbert, llama, settings_in, sparsity_of


def measure(model, **batch):
    with crisp.measuring(model) as measured:
        model(**batch)
    return measured.table()


def test_achieved_sparsity_counts_valid_pairs_only():
    table = measure(crisp.sparsify(distilbert(), TopK(0.5)), **BATCH)
    assert (table["valid_pairs"] == 8 * 8 + 5 * 5).all()
    assert (table["rows"] == 8 + 5).all()
    assert table["sparsity"].to_numpy() == pytest.approx(1 - (8 * 4 + 5 * 3) / (64 + 25))


def test_blocks_are_measured_by_the_pairs_in_them():
    """Of the four blocks of two of eight keys one stays, and of the three of five; the last of those has one key."""
    table = measure(crisp.sparsify(distilbert(), BlockTopK(0.75, block_size=2)), **BATCH)
    assert (table["sparsity"] * table["valid_pairs"]).to_numpy() == pytest.approx(
        64 - 8 * 2 + 25 - (4 * 2 + 1)
    )
    rows = measure(crisp.sparsify(llama(), BlockTopK(0.75, block_size=2)), input_ids=BATCH["input_ids"][:1])
    kept = [1, 2, 1, 2, 1, 2, 1, 2]  # of the own block, what is not in the future
    assert rows["sparsity"].to_numpy() == pytest.approx(1 - sum(kept) / 36)


def test_a_layer_says_the_method_of_each_head():
    table = measure(
        crisp.sparsify(distilbert(), heads={"0": TopK(0.5), "1": BlockTopK(0.0)}, layers=[1]), **BATCH
    )
    by_layer = table.groupby("layer")["method"].agg(list).to_dict()
    assert by_layer == {0: ["dense"] * 2, 1: ["topk", "block_topk"], 2: ["dense"] * 2, 3: ["dense"] * 2}


def test_padding_further_changes_no_measurement():
    model = crisp.sparsify(distilbert(), TopK(0.6))
    padded = {
        "input_ids": torch.nn.functional.pad(BATCH["input_ids"], (0, 9), value=1),
        "attention_mask": torch.nn.functional.pad(BATCH["attention_mask"], (0, 9)),
    }
    one, other = measure(model, **BATCH), measure(model, **padded)
    numbers = one.select_dtypes("number").columns
    assert other[numbers].to_numpy() == pytest.approx(one[numbers].to_numpy(), rel=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_does_not_count_twice(reentrant):
    model = crisp.sparsify(distilbert(), TopK(0.5)).train()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    with crisp.measuring(model) as measured:
        for _ in range(2):
            embeddings = model.get_input_embeddings()(BATCH["input_ids"])
            model(inputs_embeds=embeddings, attention_mask=BATCH["attention_mask"]).logits.sum().backward()
    assert (measured.table()["rows"] == 2 * (8 + 5)).all()


def test_padded_decoder_queries_do_not_count_in_cross_attention():
    model = crisp.sparsify(bart(), TopK(0.5), attention="all")
    decoder = {"decoder_input_ids": BATCH["input_ids"], "decoder_attention_mask": BATCH["attention_mask"]}
    table = measure(model, **BATCH, **decoder)
    cross = table[table["name"].str.contains("encoder_attn")]
    assert (cross["rows"] == 8 + 5).all()
    assert (cross["valid_pairs"] == 8 * 8 + 5 * 5).all()


def test_a_layer_out_of_its_phase_is_measured_dense():
    table = measure(crisp.sparsify(distilbert(), TopK(0.5), phase="train"), **BATCH)
    assert set(table["method"]) == {"dense"}
    assert (table["sparsity"] == 0).all()


def test_measurements_nest_and_end_with_the_block():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    with crisp.measuring(model) as outer:
        model(**BATCH)
        with crisp.measuring(model) as inner:
            model(**BATCH)
    model(**BATCH)
    assert (outer.table()["rows"] == 26).all()
    assert (inner.table()["rows"] == 13).all()
    assert not any(settings.observers for _, settings in settings_in(model))


def test_a_copy_made_inside_the_block_is_not_measured():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    with crisp.measuring(model) as measured:
        model(**BATCH)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        twin(**BATCH)
    assert (measured.table()["rows"] == 13).all()


def test_the_block_ends_also_by_an_error():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    with pytest.raises(KeyError), crisp.measuring(model):
        raise KeyError
    assert not any(settings.observers for _, settings in settings_in(model))


def test_a_dense_model_is_measured_dense_and_left_as_it_was():
    model = distilbert()
    with crisp.measuring(model) as measured:
        model(**BATCH)
    table = measured.table()
    assert (table["sparsity"] == 0).all()
    assert table["kept_mass"].to_numpy() == pytest.approx(1)
    assert model.config._attn_implementation == "sdpa"
    assert not settings_in(model)


def test_a_part_of_a_sparse_model_can_be_measured():
    model = crisp.sparsify(distilbert(), TopK(0.5))
    with crisp.measuring(model.distilbert) as measured:
        model(**BATCH)
    assert (measured.table()["sparsity"] > 0.4).all()


def test_nothing_measured_is_an_error():
    with crisp.measuring(crisp.sparsify(distilbert(), TopK(0.5))) as measured:
        pass
    with pytest.raises(ValueError, match="nothing was measured"):
        measured.table()


def test_a_model_made_sparse_inside_the_block_stays_sparse():
    model = distilbert()
    with crisp.measuring(model):
        crisp.sparsify(model, TopK(0.5))
    assert set(sparsity_of(model).values()) == {0.5}
