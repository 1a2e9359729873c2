"""The order of examples: the run's own for every seed and epoch, and the same again when repeated."""

from itertools import product

import pytest
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.trainer import RunTrainer
from tests.runs import small

ROWS = 64


@pytest.fixture(scope="module")
def rows() -> Dataset:
    lengths = [3 + 5 * i % 17 for i in range(ROWS)]
    return Dataset.from_dict({"input_ids": [[1] * n for n in lengths], "index": list(range(ROWS))})


def orders(rows: Dataset, folder, seed: int, *training: str) -> list[tuple[int, ...]]:
    """The examples of the first four epochs."""
    options = small.options("m", "d", folder, seed=seed, batch_size=8, training=training)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
        )
    )
    trainer = RunTrainer(
        model=model,
        args=training_arguments(small.spec(options), folder),
        train_dataset=rows,
        data_collator=lambda batch: {"index": [each["index"] for each in batch]},
    )
    loader = trainer.get_train_dataloader()
    found = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        found.append(tuple(i for batch in loader for i in batch["index"]))
    return found


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_no_two_seeds_or_epochs_share_an_order(rows, tmp_path, strategy):
    training = ("use_cpu=true", "eval_strategy=no", f"train_sampling_strategy={strategy}")
    found = [order for seed in range(4) for order in orders(rows, tmp_path, seed, *training)]
    assert all(sorted(order) == list(range(ROWS)) for order in found)
    for (i, ours), (j, its) in product(enumerate(found), repeat=2):
        same = sum(a == b for a, b in zip(ours, its, strict=True))
        assert same == ROWS if i == j else same < ROWS / 4, (i, j)
    assert orders(rows, tmp_path, 3, *training) == found[-4:]


def test_the_seed_of_the_data_alone_decides_where_it_is_given(rows, tmp_path):
    training = ("use_cpu=true", "eval_strategy=no", "data_seed=5")
    assert orders(rows, tmp_path, 0, *training) == orders(rows, tmp_path, 1, *training)
