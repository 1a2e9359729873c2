"""The classes of a user: which examples train, and how runs are judged."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from crisp_attention.cli.main import main
from crisp_attention.errors import DataError, OptionError
from crisp_attention.flags import named
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.classes import others, with_classes
from crisp_attention.runs.data.load import EVERY_CLASS
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task.metrics import class_accuracy
from crisp_attention.runs.task.target import Classification, Target
from tests.runs.pruning import topics


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> str:
    return topics.data(tmp_path_factory.mktemp("topics") / "data")


@pytest.mark.parametrize("classes", [("film", "good"), ("1", "2"), ("good", "1")])
def test_train_has_the_classes_alone_and_the_other_splits_have_all(sentences: str, classes) -> None:
    task = load_task(Data(source=sentences, classes=classes))
    assert isinstance(task.target, Classification)
    assert [task.label_names[each] for each in task.target.classes] == ["film", "good"]
    assert set(task.splits["train"]["labels"]) == {1, 2}
    assert len(task.splits["train"]) == 24
    assert len(task.splits[EVERY_CLASS]) == 48
    assert set(task.splits["test"]["labels"]) == {0, 1, 2, 3}
    assert Target.from_dict(task.target.to_dict()) == task.target


def test_drawn_classes_vary_with_the_seed_and_with_nothing_else(sentences: str) -> None:
    data = Data(source=sentences, draw_classes=2)
    drawn = [load_task(data, seed).target.to_dict()["classes"] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("comedy",)}, "there is no class comedy: expected names or numbers of"),
        ({"classes": ("4",)}, "there is no class 4"),
        ({"classes": ("0", "1", "2", "3")}, "classes names all 4 of them"),
        ({"classes": ("2", "3", "2")}, "classes names .* twice: expected each class once, got 2, 3, 2"),
        ({"classes": ("film", "1")}, "classes names film twice: expected each class once, got film, 1"),
        ({"draw_classes": 4}, "draw_classes expects fewer than the 4 classes, .*; got 4"),
    ],
)
def test_classes_that_cannot_be_are_refused(sentences: str, options, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(Data(source=sentences, **options))


def test_classes_of_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"it is {i},{i / 3:.2f}\n" for i in range(20))
    )
    with pytest.raises(DataError, match="expected labels that are classes, found numbers"):
        load_task(Data(source=str(tmp_path), classes=("0",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("a",), "draw_classes": 2}, "draw_classes cannot be combined with classes"),
        ({"classes": ("",)}, "classes must be names or numbers, got an empty one: ''"),
        ({"classes": ("a", "")}, "classes must be names or numbers, got an empty one: 'a', ''"),
        ({"classes": "ab"}, "classes must be a list or another sequence, got 'ab'"),
        ({"classes": 3}, "classes must be a list or another sequence, got 3"),
        ({"classes": None}, "classes must be a list or another sequence, got None"),
        ({"draw_classes": 0}, "draw_classes must be a whole number of at least 1, got 0"),
        ({"draw_classes": "2"}, "draw_classes must be a whole number of at least 1, got '2'"),
    ],
)
def test_what_names_no_classes_is_refused_before_anything_is_read(options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Data(source="x", **options)


@pytest.mark.parametrize("command", ["finetune", "sweep", "prune", "profile"])
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([""], "--classes must be names or numbers, got an empty one: ''"),
        (["3,,5"], "--classes must be names or numbers, got an empty one: '3', '', '5'"),
        ([], "--classes expects at least one value, found none"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_no_choice_of_all(
    tmp_path: Path, monkeypatch, capsys, command: str, typed: list[str], message: str
) -> None:
    given = ["--model", "builtin:vit", "--dataset", "builtin:digits", "--output", str(tmp_path / "x")]
    monkeypatch.setattr("sys.argv", ["crisp", command, "--classes", *typed, *given])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert " ".join(capsys.readouterr().err.split()) == f"error: {message}"
    assert not (tmp_path / "x").exists()


def test_the_control_has_as_many_other_classes_that_have_examples() -> None:
    train = Dataset.from_dict({"labels": [0, 1, 2, 3, 3]})
    target = Classification(tuple("abcde"), (1, 3))
    for seed in range(9):
        assert set(others(target, train, seed)) == {0, 2}
    with pytest.raises(DataError, match="there are 1 others"):
        others(Classification(tuple("abcde"), (0, 1, 2)), train, 0)


def test_only_classes_that_every_split_has_are_drawn_or_taken(tmp_path: Path) -> None:
    rows = {"train": "abcd", "validation": "abd", "test": "abc"}
    for split, labels in rows.items():
        lines = [json.dumps({"text": f"it is {label}", "label": label}) for label in labels * 3]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    for seed in range(5):
        assert load_task(Data(source=str(tmp_path), draw_classes=2), seed).target.classes == (0, 1)  # type: ignore
    with pytest.raises(DataError, match=r"at most the 2 that all of .* have"):
        load_task(Data(source=str(tmp_path), draw_classes=3))
    with pytest.raises(DataError, match="classes without an example in the validation split: c"):
        load_task(Data(source=str(tmp_path), classes=("a", "c")))


def test_a_number_is_that_of_a_class_and_text_its_name_first() -> None:
    splits = {"train": Dataset.from_dict({"labels": [0, 1, 2, 3]})}
    target = Classification(("3", "2", "1", "0"))
    assert with_classes(target, splits, [0, 1]).classes == (0, 1)
    assert with_classes(target, splits, ["0", "1"]).classes == (2, 3)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["very good,film"], ["very good", "film"]),
        (["a,", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ([""], [""]),
        (["a,,b,"], ["a", "", "b", ""]),
    ],
)
def test_names_of_classes_may_have_spaces(words: list[str], names: list[str]) -> None:
    assert named(words) == names


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_accuracy_on_classes_is_a_mean_over_all_examples_too(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    metric = class_accuracy((1, 3))
    counted = [p == t for p, t in pairs if t in (1, 3)]
    assert metric.per_example is not None
    score = metric.score(predictions, labels)
    if counted:
        assert score == pytest.approx(np.mean(counted))
        assert metric.per_example(predictions, labels).mean() == pytest.approx(score)
    else:
        assert np.isnan(score)


def test_among_the_classes_other_outputs_do_not_count() -> None:
    target = Classification(("a", "b", "c"), (0, 1))
    logits = np.array([[1.0, 0, 5], [0, 1, 5], [3, 0, 1], [0, 0, 1], [np.nan, 0, 1]])
    found = target.scores(logits, np.array([0, 0, 0, 2, 1]))
    assert found["class_accuracy"] == 1 / 4
    assert found["among_classes"] == 2 / 4
    assert found["accuracy"] == 2 / 5
