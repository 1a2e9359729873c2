"""Classes and numbers to predict: their metrics, how labels are read, and runs that are judged by them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

import crisp_attention as crisp
from crisp_attention.errors import DataError, OptionError
from crisp_attention.runs.task import Classification, Regression, Target
from tests.runs import small
from tests.runs.tables import ROWS, noted, task_of, write

BINARY = Classification(("no", "yes"))
THREE = Classification(("a", "b", "c"))
NUMBERS = Regression()
RECIPE = crisp.Recipe(epochs=2, batch_size=8, learning_rate=1e-2, training={"use_cpu": True})


# --- metrics, against their definitions


def f1(predictions, labels, of) -> float:
    right = np.sum((predictions == of) & (labels == of))
    return 2 * right / (np.sum(predictions == of) + np.sum(labels == of)) if right else 0.0


def one_hot(values, classes) -> np.ndarray:
    return (values[:, None] == np.arange(classes)).astype(float)


def mcc(predictions, labels, classes) -> float:
    """The correlation coefficient of Gorodkin (2004), from covariances of indicator columns."""
    x, y = (one_hot(each, classes) - one_hot(each, classes).mean(0) for each in (predictions, labels))
    bottom = math.sqrt((x * x).sum() * (y * y).sum())
    return (x * y).sum() / bottom if bottom else 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [BINARY, THREE], ids=["two classes", "three classes"])
def test_metrics_of_classes(target, seed):
    drawn = np.random.default_rng(seed)
    labels, logits = drawn.integers(0, target.outputs, 40), drawn.normal(size=(40, target.outputs))
    logits[labels == 1, 1] += seed / 3
    predictions = logits.argmax(1)
    each = [f1(predictions, labels, of) for of in range(target.outputs)]
    assert target.scores(logits, labels) == pytest.approx(
        {
            "accuracy": (predictions == labels).mean(),
            "f1": each[1] if target is BINARY else np.mean(each),
            "mcc": mcc(predictions, labels, target.outputs),
        }
    )
    accuracy = target.metric(None)
    assert accuracy.per_example(predictions, labels).mean() == accuracy.score(predictions, labels)


def test_a_row_that_is_not_finite_is_no_class_and_wrong():
    logits = np.array([[2.0, 1.0], [np.nan, 0.0], [0.0, np.inf], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1])
    assert BINARY.predicted(logits).tolist() == [0, -1, -1, 1]
    assert BINARY.scores(logits, labels) == pytest.approx(
        {"accuracy": 0.5, "f1": 2 / 3, "mcc": mcc(np.array([0, 2, 2, 1]), labels, 3)}
    )
    three = THREE.scores(np.array([[1.0, 0, 0], [np.nan, 0, 0], [0, 0, 1.0]]), np.array([0, 1, 2]))
    assert three["f1"] == pytest.approx(2 / 3)  # the mean of 1, 0 and 1


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_numbers(seed):
    drawn = np.random.default_rng(seed)
    labels = drawn.normal(size=30)
    guesses = seed * labels + drawn.normal(size=30).round(1)  # with ties
    ranks = [pd.Series(each).rank() for each in (guesses, labels)]
    assert NUMBERS.scores(guesses[:, None], labels) == pytest.approx(
        {
            "pearson": np.corrcoef(guesses, labels)[0, 1],
            "spearman": np.corrcoef(*ranks)[0, 1],
            "rmse": math.sqrt(np.mean((guesses - labels) ** 2)),
        }
    )


def test_a_constant_guess_knows_nothing_and_one_that_is_not_finite_has_no_score():
    labels = np.array([1.0, 2.0, 3.0])
    assert NUMBERS.scores(np.full((3, 1), 2.0), labels) == pytest.approx(
        {"pearson": 0, "spearman": 0, "rmse": math.sqrt(2 / 3)}
    )
    assert all(
        math.isnan(each) for each in NUMBERS.scores(np.array([[1.0], [np.nan], [2.0]]), labels).values()
    )


def test_targets_are_written_down_and_older_files_are_of_classes():
    for target in (BINARY, THREE, NUMBERS):
        assert Target.from_dict(json.loads(json.dumps(target.to_dict()))) == target
    assert Target.from_dict({"label_names": ["no", "yes"], "image_column": None}) == BINARY


# --- labels


def csv(folder, **splits) -> str:
    folder.mkdir(exist_ok=True)
    for split, labels in splits.items():
        rows = [f"{'good' if n % 2 else 'bad'} film {n},{label}" for n, label in enumerate(labels)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    return str(folder)


def test_floats_are_numbers_to_predict_and_integers_are_classes(tmp_path):
    task = task_of(
        csv(tmp_path / "a", train=[0.5, 2.25, 5, 1.5] * 10, validation=[1, 2, 5], test=[-1.0, -1.0])
    )
    assert task.target == NUMBERS
    assert task.splits["train"].features["labels"].dtype == "float32"
    assert task.splits["validation"]["labels"][:] == [1, 2, 5]
    assert noted(task, "labels are numbers to predict (regression), from 0.5 to 5")
    assert noted(task, "the test split has no labels and is left out")
    assert task_of(csv(tmp_path / "b", train=[0, 1] * 10)).target == Classification(("0", "1"))
    whole = task_of(csv(tmp_path / "c", train=["1.0", "2.0"] * 10))
    assert whole.target == NUMBERS
    assert noted(whole, "if they are classes, save them as integers")


def test_numbers_are_held_out_and_taken_at_random_the_same_ones_every_time(tmp_path):
    data = csv(tmp_path / "a", train=np.linspace(0, 1, 40).tolist())
    task, again = task_of(data, train_examples=9), task_of(data, train_examples=9)
    assert noted(task, "held out 4 of 40 training examples (at random)")
    indices = [set(task.splits[split]["index"][:]) for split in ("train", "validation")]
    assert [len(each) for each in indices] == [9, 4]
    assert not indices[0] & indices[1]
    assert task.splits["train"]["index"][:] == again.splits["train"]["index"][:]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [0.5, "", 0.1]}, "the train split has no label in 1 of 3 rows"),
        ({"train": [0.5, 0.5, 0.5]}, "expected different labels in train; all 3 rows have the label 0.5"),
        ({"train": [0.5, 0.1, "1e999"]}, "expected finite labels; the train split has inf in row 2"),
    ],
)
def test_numbers_that_cannot_be_learned(tmp_path, splits, message):
    with pytest.raises(DataError, match=message):
        task_of(csv(tmp_path / "data", **splits))


def test_words_where_train_has_numbers(tmp_path):
    rows = [{"text": f"film {n}", "label": n / 3} for n in range(9)]
    folder = write(tmp_path, train=rows, validation=[{"text": "film", "label": "fine"}])
    with pytest.raises(
        DataError, match="expected numbers, as in train, in the validation split's column label"
    ):
        task_of(folder)


# --- runs


@pytest.fixture(scope="module")
def stars(tmp_path_factory) -> str:
    """Sentences with as many stars as good words, as a csv with floats."""
    drawn = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("stars")
    for split, count in (("train", 64), ("validation", 24)):
        rows = ["text,stars"]
        for _ in range(count):
            good = drawn.integers(0, 5)
            words = drawn.permutation(["good"] * good + ["bad"] * (4 - good))
            rows.append(f"{' '.join(words)},{good / 2 + 0.25}")
        (folder / f"{split}.csv").write_text("\n".join(rows))
    return str(folder)


@pytest.mark.slow
def test_regression_from_the_command_line(bert, stars, tmp_path, crisp_command):
    words = ["--label-column", "stars", "--sparsity", "0.3", "--epochs", 6, "--batch-size", 8]
    words += ["--learning-rate", 1e-2, "--metric", "rmse", "--training", "use_cpu=true"]
    words += ["--training", "load_best_model_at_end=true"]
    output = tmp_path / "run"
    status, out, err = crisp_command(
        "finetune", "--model", bert, "--dataset", stars, "--output", output, *words
    )
    assert status == 0, err
    run = crisp.Run.open(output)
    table = run.predictions()
    assert table.columns.tolist() == ["label", "prediction"]
    assert table["prediction"].dtype == table["label"].dtype == np.float32
    errors = (table["prediction"] - table["label"]).to_numpy(float)
    seen = run.metrics["validation"]
    assert run.metrics["metric"] == "rmse"
    assert seen["rmse"] == pytest.approx(math.sqrt(np.mean(errors**2)), rel=1e-5)
    assert seen["loss"] == pytest.approx(np.mean(errors**2), rel=1e-4)
    assert seen["pearson"] == pytest.approx(np.corrcoef(table["prediction"], table["label"])[0, 1], rel=1e-4)
    assert seen["pearson"] > 0.5
    history = pd.read_csv(output / "history.csv")["eval_rmse"].dropna()
    assert seen["rmse"] == pytest.approx(history.min(), rel=1e-5)  # the smallest is the best
    assert "Pearson r" in out
    assert f"{seen['rmse']:.3f}" in out
    assert ", RMSE 0." in err
    assert run.model().config.problem_type == "regression"


def test_images_may_have_numbers_too(tmp_path):
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(0, 255, (24, 8, 8, 3)).astype(np.uint8)
    features = Features({"image": Image(), "label": Value("float64")})
    images = [Pillow.fromarray(each) for each in pixels]
    rows = Dataset.from_dict({"image": images, "label": pixels.mean((1, 2, 3)) / 255}, features)
    run = crisp.finetune(
        small.vit(tmp_path / "vit"), rows, output=tmp_path / "run", recipe=RECIPE, verbose=False
    )
    table = run.predictions()
    errors = (table["prediction"] - table["label"]).to_numpy(float)
    assert run.metrics["validation"]["loss"] == pytest.approx(np.mean(errors**2), rel=1e-4)
    assert run.metrics["metric"] == "pearson"


def test_classes_by_a_metric_of_their_own(bert, reviews, tmp_path):
    best = crisp.Recipe(
        epochs=3,
        batch_size=16,
        learning_rate=1e-2,
        training={"use_cpu": True, "load_best_model_at_end": True},
    )
    run = crisp.finetune(
        bert,
        reviews,
        method=crisp.TopK(0.5),
        output=tmp_path / "run",
        recipe=best,
        metric="mcc",
        verbose=False,
    )
    table = run.predictions()
    assert run.metrics["metric"] == "mcc"
    expected = mcc(table["prediction"].to_numpy(), table["label"].to_numpy(), 2)
    assert run.metrics["validation"]["mcc"] == pytest.approx(expected)
    history = pd.read_csv(run.directory / "history.csv")["eval_mcc"].dropna()
    assert run.metrics["validation"]["mcc"] == pytest.approx(history.max())


def test_a_metric_of_another_task_is_refused_before_a_model_is_loaded(tmp_path):
    data = write(tmp_path, train=ROWS)
    with pytest.raises(
        OptionError, match=r"metric must be accuracy, f1 or mcc for classification, .*; got rmse"
    ):
        crisp.finetune("/no/model", data, output=tmp_path / "run", metric="rmse", recipe=RECIPE)
    with pytest.raises(OptionError, match=r"metric must be one of .*; got 'mc'; did you mean mcc"):
        crisp.finetune("/no/model", "/no/data", output=tmp_path / "run", metric="mc")
    best = crisp.Recipe(training={"use_cpu": True, "metric_for_best_model": "pearson"})
    with pytest.raises(OptionError, match="metric_for_best_model must be accuracy, f1 or mcc"):
        crisp.finetune("/no/model", data, output=tmp_path / "run", recipe=best)


@pytest.mark.slow
def test_a_sparse_classifier_learns_numbers_next(finished, stars, tmp_path):
    """Its head is of another size and drawn again; its method is that of the second run."""
    data = crisp.Data(source=stars, label_column="stars")
    recipe = crisp.Recipe(epochs=1, training={"use_cpu": True})
    second = crisp.finetune(
        finished.directory,
        data,
        method=crisp.Window(3),
        output=tmp_path / "run",
        recipe=recipe,
        verbose=False,
    )
    model = second.model()
    assert model.classifier.weight.shape == torch.Size([1, 16])
    layers = model.config.crisp_attention["layers"]
    assert {each["layout"]["name"] for each in layers.values()} == {"window"}
    assert any(
        "classifier.weight" in note
        for note in json.loads((second.directory / "config.json").read_text())["notes"]
    )
