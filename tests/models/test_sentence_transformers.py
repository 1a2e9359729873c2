"""A sentence-transformers model whose transformer is sparse: encoding, training, saving, other processes."""

import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import crisp_attention as crisp
from crisp_attention import Entmax, SparseCheckpointLoadedDense, TopK
from tests.models.tiny import sparsity_of

TEXTS = ["the film is good", "a plot very dull and it was", "fine"]


@pytest.fixture
def embedder(bert):
    body = Transformer(bert)
    with torch.no_grad():
        for parameter in body.parameters():  # so that attention is far from uniform
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return SentenceTransformer(modules=[body, Pooling(16)], device="cpu")


def test_it_encodes_sparse_and_dense_again(embedder):
    dense = embedder.encode(TEXTS)
    crisp.sparsify(embedder, TopK(0.6))
    sparse = embedder.encode(TEXTS)
    assert np.abs(sparse - dense).max() > 1e-2
    one_by_one = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, sparse, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(crisp.densify(embedder).encode(TEXTS), dense)


def test_saved_and_loaded_it_says_that_it_is_dense_until_it_is_restored(embedder, tmp_path):
    dense = embedder.encode(TEXTS)
    sparse = crisp.sparsify(embedder, TopK(0.6)).encode(TEXTS)
    embedder.save(str(tmp_path))
    with pytest.warns(SparseCheckpointLoadedDense, match=r"is dense, .* until crisp_attention\.restore"):
        loaded = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), dense)
    np.testing.assert_array_equal(crisp.restore(loaded).encode(TEXTS), sparse)


def test_it_trains_with_what_its_attention_learns(embedder, tmp_path):
    crisp.sparsify(embedder, Entmax("learned"))
    before = {name: each.detach().clone() for name, each in embedder.named_parameters() if "alpha" in name}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "checkpoints"),
        max_steps=3,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    pairs = Dataset.from_dict({"one": TEXTS * 4, "other": TEXTS[::-1] * 4, "score": [0.1, 0.9, 0.5] * 4})
    loss = losses.CosineSimilarityLoss(embedder)
    SentenceTransformerTrainer(model=embedder, args=arguments, train_dataset=pairs, loss=loss).train()
    after = dict(embedder.named_parameters())
    assert len(before) == 3
    assert all((after[name] != each).all() for name, each in before.items())
    expected = embedder.encode(TEXTS)
    embedder.save(str(tmp_path / "saved"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparseCheckpointLoadedDense)
        loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(crisp.restore(loaded).encode(TEXTS), expected)


@pytest.mark.slow
def test_a_pool_of_processes_encodes_as_the_model_does(embedder):
    sparse = crisp.sparsify(embedder, TopK(0.6)).encode(TEXTS)
    pool = embedder.start_multi_process_pool(["cpu"] * 2)
    try:
        found = embedder.encode(TEXTS * 4, pool=pool)
    finally:
        embedder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(found, np.tile(sparse, (4, 1)), rtol=1e-4, atol=1e-5)
    assert set(sparsity_of(embedder).values()) == {0.6}
