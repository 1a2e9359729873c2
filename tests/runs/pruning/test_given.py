"""What `crisp.prune` is given: mistakes are said before the model changes."""

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from crisp_attention.errors import DataError, OptionError
from tests.runs.pruning.test_prune import examples, model, pruned, zeros
from tests.runs.pruning.topics import BODY

ROWS = examples()
UNEVEN = [each | {"input_ids": [1, 4, 10][: 2 + number % 2]} for number, each in enumerate(ROWS)]
CONFIG = BertConfig(**BODY, vocab_size=32, max_position_embeddings=16, num_labels=4)


def labelled(by: Callable[[int], Any]) -> list[dict[str, Any]]:
    """The rows with other labels."""
    return [each | {"labels": by(each["labels"])} for each in ROWS]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"train": ROWS}, "train must be the examples of one split, .* found dict of train"),
        (
            DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)),
            "one split, one after another; found DatasetDict of train, test",
        ),
        ("data/train.csv", "train must be a Dataset or a sequence of examples, found 'data/train.csv'"),
        (7, "train must be a Dataset or a sequence of examples, found 7"),
        ([([1, 4], 0)], "train must hold examples that are mappings of columns, found tuple"),
        (labelled("abcd".__getitem__), "labels of train must be whole numbers .* 4 outputs.*; found string"),
        (labelled(float), "labels of train must be whole numbers .*; found float64"),
        (labelled(lambda label: label % 2 == 0), "labels of train must be whole numbers .*; found bool"),
        (
            labelled(lambda label: label or None),
            "labels of train must be whole numbers .*; found missing ones",
        ),
        (labelled(lambda label: label - 1), "below the model's 4 outputs, .*; found int64 from -1 to 2"),
        (labelled(lambda label: [label, 1, 2]), r"one per example; found List\(Value\('int64'\)\)"),
        (labelled(lambda label: [1.0, 0.0, 0.0, 1.0]), r"one per example; found List\(Value\('float64'\)\)"),
        (
            [{"text": "it is good", "labels": 1}],
            "such as input_ids; found text, labels: expected rows that are encoded, as the model's tokenizer",
        ),
        (
            [{"input_ids": "it is good", "labels": 1}],
            "found input_ids, labels, as text: expected rows that are encoded",
        ),
        ([{"input_ids": ["it", "is"], "labels": 1}], "as text: expected rows that are encoded"),
        (
            UNEVEN,
            r"train has rows of 2 to 3 tokens, .*: expected collate=DataCollatorWithPadding\(tokenizer\)",
        ),
    ],
)
def test_rows_that_are_no_encoded_examples_of_classes(train, message: str) -> None:
    own = model()
    before = {name: each.clone() for name, each in own.state_dict().items()}
    with pytest.raises(DataError, match=message):
        pruned(own, train, classes=[])
    assert all(each.equal(before[name]) for name, each in own.state_dict().items())
    assert own.training


def test_rows_to_evaluate_on_are_checked_too() -> None:
    with pytest.raises(DataError, match="evaluation has rows of 2 to 3 tokens"):
        pruned(model(), evaluation=UNEVEN)
    with pytest.raises(DataError, match=r"labels of evaluation must be whole numbers .*; found string"):
        pruned(model(), evaluation=labelled(str))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (nn.Linear(8, 8), "model must be a classifier of transformers, got Linear"),
        ("bert-base-uncased", "model must be a classifier of transformers, got str"),
        (
            BertModel(CONFIG),
            "a classifier, with a head; BertModel takes no labels: expected one such as AutoModel",
        ),
        (
            BertForTokenClassification(CONFIG),
            r"model must give \(5, 4\) outputs \(examples, classes\); BertForTokenClassification gave \(5, 3, 4\)",
        ),
        (
            model(problem_type="multi_label_classification"),
            "has 4 outputs and is for multi_label_classification",
        ),
        (model(problem_type="regression"), "has 4 outputs and is for regression"),
    ],
)
def test_models_that_are_no_classifiers(own, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pruned(own)


def test_a_model_that_predicts_a_number() -> None:
    own = BertForSequenceClassification(BertConfig(**CONFIG.to_dict() | {"num_labels": 1}))
    with pytest.raises(OptionError, match=r"every example one of at least 2 classes; .* has 1 output$"):
        pruned(own, labelled(float), classes=[])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_with_adapters() -> None:
    peft = pytest.importorskip("peft")
    own = peft.get_peft_model(model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(OptionError, match=r"classifier of transformers after merge_and_unload\(\), got Peft"):
        pruned(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": "*.layer.0.*"}, r"skip must be a sequence of patterns of names, .* got '\*\.layer\.0\.\*'"),
        ({"pattern": (2, 4)}, r"pattern must be text such as '2:4', or 'none', got \(2, 4\)"),
        ({"pattern": 24}, "pattern must be text such as '2:4', or 'none', got 24"),
        ({"pattern": ""}, "pattern must be N:M with N below M, such as '2:4', or None, got ''"),
        ({"block_size": "8"}, "block_size must be a whole number of at least 0, got '8'"),
        ({"classes": 3}, "classes must be a list or another sequence, got 3"),
        ({"classes": None}, "classes must be a list or another sequence, got None"),
        ({"classes": [""]}, "classes must be names or numbers, got an empty one"),
        (
            {"target": {}},
            "target must be a share, or one for some of attention, feed-forward, convolution, got {}",
        ),
        ({"seed": "a"}, "seed must be a whole number in 0 to 4294967295, got 'a'"),
        ({"seed": 1.5}, "seed must be a whole number in 0 to 4294967295, got 1.5"),
        ({"epochs": "a"}, "epochs must be positive and finite, got 'a'"),
        ({"batch_size": 1.5}, "batch_size must be a whole number of at least 1, got 1.5"),
        ({"learning_rate": "1e-3"}, "learning_rate must be positive and finite, got '1e-3'"),
        ({"training": "bf16=true"}, "training must be a mapping, .* got 'bf16=true'"),
        (
            {"saliency": "magnitude", "gradients": "all"},
            "gradients all has no meaning with saliency 'magnitude'",
        ),
        ({"saliency": "magnitude", "examples": 3}, "examples 3 has no meaning with saliency 'magnitude'"),
        ({"collate": None}, "collate must make a batch of a list of examples, got None"),
        (
            {"collate": lambda rows: rows},
            "collate must make a batch with labels of examples of train; it raised Type",
        ),
        (
            {"collate": lambda rows: {"labels": default_data_collator(rows)["labels"]}},
            "BertForSequenceClassification cannot read the examples of train: ValueError: You must specify",
        ),
    ],
)
def test_values_that_cannot_be(changes, message: str) -> None:
    own = model()
    before = {name: each.clone() for name, each in own.state_dict().items()}
    with pytest.raises(OptionError, match=message):
        pruned(own, **changes)
    assert all(each.equal(before[name]) for name, each in own.state_dict().items())
    assert own.training


def test_a_class_that_is_named_twice() -> None:
    with pytest.raises(
        DataError, match="classes names LABEL_1 twice: expected each class once, got 1, LABEL_1, 2"
    ):
        pruned(model(), classes=[1, "LABEL_1", 2])


def test_rows_of_several_lengths_are_padded_by_collate() -> None:
    own = model()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0})), pad_token="[PAD]"
    )
    found = pruned(own, UNEVEN, evaluation=UNEVEN, collate=DataCollatorWithPadding(tokenizer))
    assert found.sparsity >= 0.7
    assert zeros(own)["bert.encoder.layer.0.output.dense.weight"] > 0.4
