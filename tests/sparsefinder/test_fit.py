"""`crisp sparsefinder fit`: a saved model that predicts its pairs, and what cannot be fitted is refused before that."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

import crisp_attention as crisp
from crisp_attention.models.sparse_model import SparseModel
from tests.runs import small

METHOD = "sparsefinder:clusters=4:rank=3"


@pytest.fixture
def fit(crisp_command, reviews, tmp_path):
    """Runs the command on `reviews`: exit status and what it printed; the model is in `fitted`."""

    def run(model, *words, data=reviews, output=None):
        output = output or tmp_path / "fitted"
        given = ("--model", model, "--dataset", data, "--output", output, "--method", METHOD, *words)
        status, printed, said = crisp_command("sparsefinder", "fit", *given)
        return status, printed + said

    return run


def logits(model, folder, reviews) -> torch.Tensor:
    texts = pd.read_json(Path(reviews) / "validation.jsonl", lines=True)["text"].tolist()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_what_is_fitted_is_saved_with_what_the_run_had_and_trained_further(trained, fit, reviews, tmp_path):
    status, text = fit(trained)
    assert status == 0, text
    assert "own options are used instead" not in text
    left = "bert.encoder.layer.2.attention.self (topk:sparsity=0.5)"
    assert f"left unchanged, as not all of their heads use entmax: {left}\n" in text
    assert "does not have" not in text
    before, after = crisp.load(trained), crisp.load(tmp_path / "fitted")
    methods = after.config.crisp_attention["layers"]
    names = [f"bert.encoder.layer.{i}.attention.self" for i in range(3)]
    kinds = [(methods[name]["layout"]["name"], methods[name]["rule"]["name"]) for name in names]
    assert kinds == [("sparsefinder", "entmax")] * 2 + [("full", "topk")]
    held, kept = after.state_dict(), before.state_dict()
    alphas = [name for name in kept if name.endswith("rule.alpha")]
    assert len(alphas) == 2
    assert all(held[name].equal(value) for name, value in kept.items())
    assert held[f"{names[0]}.crisp_learned.layout.centers"].abs().sum() > 0
    own, full = logits(after, trained, reviews), logits(before, trained, reviews)
    assert own.equal(logits(crisp.load(tmp_path / "fitted"), trained, reviews))
    assert not own.equal(full)
    scores = pd.read_csv(tmp_path / "fitted" / "sparsefinder.csv")
    assert scores["layer"].tolist() == [0, 0, 1, 1]
    assert ((scores["recall"] > 0.3) & (scores["exact"] < 1)).all()
    spec = f"{METHOD}+entmax:alpha=learned"
    options = small.options(
        str(tmp_path / "fitted"),
        reviews,
        tmp_path / "run",
        epochs=1,
        method=spec,
        sparsity=None,
        layers=("0-1",),
    )
    further = crisp.load(small.tuned(options).directory).state_dict()
    fitted = [name for name in held if ".layout." in name]
    assert len(fitted) == 4
    assert all(further[name].equal(held[name]) for name in fitted)


def test_the_pairs_of_another_rule_are_predicted_in_every_layer_and_all_attended_to(bert, fit, tmp_path):
    words = ("--method", "sparsefinder:variant=distance:rank=2:threshold=inf", "--gold", "topk:sparsity=0.5")
    status, text = fit(bert, *words)
    assert status == 0, text
    scores = pd.read_csv(tmp_path / "fitted" / "sparsefinder.csv")
    assert scores["layer"].nunique() == 3
    assert (scores["gold_sparsity"] > 0.3).all()
    # every pair is shown, so what is attended to is not the rule's half of them
    assert (scores["recall"] == 1).all()
    assert (scores["output_error"] > 0.01).all()
    rules = {str(method.rule) for method in SparseModel.of(crisp.load(tmp_path / "fitted")).methods.values()}
    assert rules == {"Dense()"}


def test_with_entmax_in_the_method_every_layer_gets_both(bert, fit, tmp_path):
    status, text = fit(bert, "--method", f"{METHOD}+entmax:alpha=1.5")
    assert status == 0, text
    assert pd.read_csv(tmp_path / "fitted" / "sparsefinder.csv")["layer"].nunique() == 3


def test_what_cannot_be_fitted_is_refused_and_nothing_is_written(trained, bert, fit, reviews, tmp_path):
    def refused(*given, **more) -> str:
        status, text = fit(*given, **more)
        assert status == 2, text
        assert not (tmp_path / "fitted").exists()
        return " ".join(text.split())

    assert (
        "--model: no layer of the model uses entmax in all its heads, so there are no pairs to predict; found dense"
        in refused(bert)
    )
    assert "rank must be at most the width of a head, 8, got 9" in refused(
        trained, "--method", "sparsefinder:rank=9"
    )
    dense = f"{METHOD}+dense:temperature=4"
    assert "+dense:temperature=4' keeps every pair" in refused(trained, "--method", dense)
    assert "keeps every pair" in refused(trained, "--method", f"{METHOD}+dense")
    assert "give sparsefinder alone and --gold with the rule" in refused(bert, "--method", f"{METHOD}+topk")
    assert "--gold: expected a rule alone, such as topk:sparsity=0.8" in refused(
        bert, "--gold", "window:width=3+topk"
    )
    assert "--gold: unknown method 'nothing'" in refused(bert, "--gold", "nothing")
    few = refused(trained, "--examples", 2, "--method", "sparsefinder:clusters=90")
    assert "is too small for 90 clusters" in few
    assert "expected a layout sparsefinder, got 'topk'" in refused(trained, "--method", "topk")
    assert "--examples must be a whole number of at least 2, got 1" in refused(trained, "--examples", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.jsonl").write_text("")
    assert "error:" in refused(trained, data=tmp_path / "empty")
    assert f"--output {reviews} holds test.jsonl, train.jsonl" in refused(trained, output=reviews)
