"""`crisp.prune`: a model in memory."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

import crisp_attention as crisp
from crisp_attention import pruning
from crisp_attention.errors import DataError, OptionError
from crisp_attention.pruning import BlockLinear
from crisp_attention.runs.pruning.callback import PruningCallback
from tests.runs.pruning.topics import BODY

CLASSES = 4


def model(**changes) -> BertForSequenceClassification:
    set_seed(0)
    config = BertConfig(**BODY | changes, vocab_size=32, max_position_embeddings=16, num_labels=CLASSES)
    return BertForSequenceClassification(config)


def examples(count: int = 64) -> list[dict[str, object]]:
    """The class is that of the second token."""
    return [
        {"input_ids": [1, each % CLASSES + 4, each % 7 + 10], "labels": each % CLASSES}
        for each in range(count)
    ]


def zeros(of: torch.nn.Module) -> dict[str, float]:
    return {
        name: float((each == 0).float().mean()) for name, each in of.named_parameters() if each.dim() == 2
    }


def pruned(of, train=None, **changes):
    options = {
        "classes": [1, 2],
        "target": 0.7,
        "block_size": 8,
        "steps": 2,
        "learning_rate": 5e-3,
        "verbose": False,
    }
    return crisp.prune(of, examples() if train is None else train, **options | changes)


def test_a_model_learns_its_classes_while_it_is_pruned() -> None:
    own = model()
    found = pruned(own, evaluation=examples(), epochs=10, batch_size=8, learning_rate=2e-2)
    assert found.model is own
    assert 0.7 <= found.sparsity < 0.75
    assert found.after["class_accuracy"] == 1 > found.before["class_accuracy"]
    assert found.after["class_accuracy"] <= found.after["among_classes"]
    assert zeros(own)["classifier.weight"] == zeros(own)["bert.embeddings.position_embeddings.weight"] == 0
    own(torch.tensor([[1, 4, 10]]), labels=torch.tensor([0])).loss.backward()  # nothing is held any more
    torch.optim.SGD(own.parameters(), lr=0.1).step()
    assert found.sparsity < 0.5


def test_scores_are_recorded_during_training_too() -> None:
    found = pruned(model(), evaluation=examples(), epochs=2)
    assert list(found.history["epoch"]) == [1, 2, 3, 4]
    assert found.history["sparsity"].is_monotonic_increasing
    assert found.history["sparsity"].iloc[-1] == pytest.approx(found.sparsity)
    for name in ("class_accuracy", "among_classes", "accuracy"):
        assert found.history[name].iloc[-1] == found.after[name]
    assert pruned(model()).history.empty


@pytest.mark.parametrize(
    ("first", "second", "zeros"),
    [
        ({"pattern": None, "target": 0.75}, {"pattern": None, "target": 0.75}, 0.75),
        ({"pattern": None, "target": 0.75}, {"pattern": "2:4", "target": 0.9}, 0.9),
        ({"pattern": "1:4", "block_size": None, "target": 0.75}, {"pattern": "2:4", "target": 0.8}, 0.8),
        ({"pattern": None, "target": 0.5}, {"pattern": None, "block_size": 16, "target": 0.6}, 0.6),
    ],
)
def test_a_model_pruned_twice_reaches_its_target(first, second, zeros) -> None:
    own = model(hidden_size=64, intermediate_size=64)
    pruned(own, steps=1, **first)
    assert pruned(own, **second).sparsity == pytest.approx(zeros, abs=0.05)


def test_fewer_zeros_than_there_are_cannot_be_asked_for() -> None:
    own = model(hidden_size=64, intermediate_size=64)
    pruned(own, steps=1, pattern=None, target=0.75)
    before = {name: each.clone() for name, each in own.state_dict().items()}
    with pytest.raises(OptionError, match=r"at least the zeros that are there, got 0\.5; with blocks of 8"):
        pruned(own, pattern=None, target=0.5)
    with pytest.raises(
        OptionError, match=r"got 0\.76; with 2:4 in blocks of 8, these \d+ layers would have 0\.87"
    ):
        pruned(own, target=0.76)
    assert all(each.equal(before[name]) for name, each in own.state_dict().items())


def test_a_pruned_model_that_attends_densely_is_loaded_without_a_warning(tmp_path, recwarn) -> None:
    own = model()
    pruned(own, steps=1)
    own.save_pretrained(tmp_path)
    found = crisp.load(tmp_path)
    assert zeros(found) == zeros(own)
    assert not [each for each in recwarn if "dense" in str(each.message)]


def test_the_report_says_what_was_pruned_left_and_gained() -> None:
    found = pruned(model(), evaluation=examples(), skip=["*.key"])
    report = found.report(rows=4)
    assert report.layers["name"].str.endswith(("query", "value", "dense")).all()
    assert set(report.layers["kind"]) == {"attention", "feed-forward"}
    assert (report.layers[["dense_ms", "compressed_ms"]] > 0).all().all()
    text = str(report)
    assert "accuracy on the classes: " in text
    assert "as asked for: bert.encoder.layer.0.attention.self.key" in text
    assert [line.split()[-1] for line in text.splitlines()[2:5]] == ["attention", "feed-forward", "all"]
    json.dumps(report.layers.to_dict("list"))


def test_kinds_of_layers_have_their_own_share() -> None:
    own = model()
    found = pruned(own, target={"feed-forward": 0.75})
    assert all(share == 0 for name, share in zeros(own).items() if "attention" in name)
    assert found.sparsity >= 0.75
    assert "no target for attention" in str(found.report(rows=4))


def test_a_pruned_model_can_be_pruned_again_and_only_loses() -> None:
    own = model()
    pruned(own, target=0.6)
    before = {name: each == 0 for name, each in own.named_parameters()}
    found = pruned(own, target=0.75)
    assert found.sparsity >= 0.75
    assert not any(
        (zero & (each != 0)).any()
        for zero, (_, each) in zip(before.values(), own.named_parameters(), strict=False)
        if zero.dim() == 2
    )


@pytest.mark.parametrize("ste", ["ste", "sr-ste"])
def test_the_pattern_holds_after_straight_through_training(ste: str) -> None:
    found = pruned(model(), ste=ste)
    assert 0.7 <= found.sparsity < 0.75
    for group, _ in found.treatment.matrices(found.model):
        for each in group:
            rows = each.rows(each.weight.detach()) != 0
            assert rows.unflatten(1, (-1, 4)).sum(dim=2).max() <= 2


def test_sparse_attention_is_kept_and_compressed_models_come_back(tmp_path: Path) -> None:
    own = model(hidden_size=64, intermediate_size=128)
    crisp.sparsify(own, crisp.TopK(0.5))
    pruned(own, target=0.7, pattern=None, block_size=16)
    fast = crisp.compress(own, least_weights=0)
    assert any(isinstance(each, BlockLinear) for each in fast.modules())
    fast.save_pretrained(tmp_path)
    back = crisp.load(tmp_path).eval()
    assert crisp.is_sparse(back)
    ids = torch.tensor([[1, 4, 10, 11, 12]])
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, own.eval()(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_half_pruned_model_is_saved_and_pruned_further(tmp_path: Path) -> None:
    own = model()
    pruned(own, target=0.6)
    own.save_pretrained(tmp_path)
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert zeros(back) == zeros(own)
    assert pruned(back, target=0.7).sparsity >= 0.7


@pytest.mark.parametrize(
    ("train", "changes", "error", "message"),
    [
        (None, {"target": 0.99}, OptionError, "target must be within the pattern's reach, got 0.99"),
        (None, {"target": 0.75, "block_size": 64}, OptionError, "got 0.75; 2:4 in blocks of 64"),
        (None, {"classes": [4]}, DataError, "there is no class 4"),
        (None, {"classes": ["cats"]}, DataError, "there is no class cats"),
        (examples(64)[::4], {}, DataError, "classes without an example in the train split: LABEL_1, LABEL_2"),
        ([], {}, DataError, "train must hold examples with their class as 'labels'; found 0"),
        (Dataset.from_dict({"text": ["a"]}), {}, DataError, "found 1 examples with text"),
        ([{"input_ids": [1], "labels": 7}], {}, DataError, "below the model's 4 outputs"),
        (None, {"target": {"convolution": 0.7}}, OptionError, "target names convolution"),
        (None, {"target": {"heads": 0.7}}, OptionError, "target must be one of attention, feed-forward"),
        (None, {"target": 1.5}, OptionError, r"target must be in \[0, 1\), got 1.5"),
        (None, {"classes": "12"}, OptionError, "classes must be a list or another sequence, got '12'"),
        (
            None,
            {"gradients": "random", "classes": []},
            OptionError,
            "gradients=random needs classes of a user",
        ),
        (None, {"training": {"load_best_model_at_end": True}}, OptionError, "earlier checkpoints have fewer"),
        (None, {"training": {"optim": "schedule_free_adamw"}}, OptionError, "schedule-free optimizers write"),
        (None, {"gradients": "random", "classes": [0, 1, 2]}, DataError, "there are 1 others"),
        (None, {"training": {"colour": 1}}, OptionError, "has no such field"),
    ],
)
def test_what_cannot_be_is_said_before_anything_changes(train, changes, error, message: str) -> None:
    own = model()
    before = {name: each.clone() for name, each in own.state_dict().items()}
    with pytest.raises(error, match=message):
        pruned(own, train, **changes)
    assert all(each.equal(before[name]) for name, each in own.state_dict().items())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_interrupted_it_keeps_its_zeros_so_far_holds_none_and_is_in_evaluation_mode(
    monkeypatch, kind
) -> None:
    def stop(*given, **named):
        raise kind

    own = model()
    monkeypatch.setattr(PruningCallback, "on_step_end", stop)
    with pytest.raises(kind):
        pruned(own, batch_size=8)
    assert not any(each.training for each in own.modules())
    assert zeros(own)["bert.encoder.layer.0.output.dense.weight"] > 0.4
    with torch.no_grad():
        own.bert.encoder.layer[0].output.dense.weight.fill_(1.0)
    torch.optim.SGD(own.parameters(), lr=0.1).step()
    assert zeros(own)["bert.encoder.layer.0.output.dense.weight"] == 0


def test_frozen_layers_are_pruned_and_other_columns_dropped() -> None:
    own = model()
    layer = own.bert.encoder.layer[0].output.dense.requires_grad_(False)
    rows = [each | {"text": "x", "idx": 3} for each in examples()]
    found = pruned(own, rows, evaluation=rows)
    assert found.sparsity >= 0.7
    assert (layer.weight == 0).float().mean() >= 0.5
    assert not layer.weight.requires_grad
    assert set(found.after) == {"class_accuracy", "among_classes", "accuracy", "f1", "mcc", "loss"}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    own = peft.get_peft_model(model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ValueError, match=r"has PEFT adapters.* merge_and_unload"):
        pruning.step(own, [], 0.7, block_size=8, saliency="magnitude")


def test_a_compressed_model_is_trained_and_loaded_without_its_head(tmp_path: Path) -> None:
    own = model(hidden_size=64, intermediate_size=128)
    pruned(own, target=0.7, pattern=None, block_size=16)
    crisp.compress(own, least_weights=0).save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert any(isinstance(each, BlockLinear) for each in body.modules())
    ids = torch.tensor([[1, 4, 10, 11, 12]])
    with torch.no_grad():
        expected = own.bert.eval()(ids).last_hidden_state
        torch.testing.assert_close(body.eval()(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(back, arguments, train_dataset=Dataset.from_list(examples(8))).train()
