"""`crisp sparsefinder study`: every variant and what it is compared with, scored on one gold graph."""

import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import BartConfig, BartModel, BertConfig, BertForMaskedLM

import crisp_attention as crisp
from crisp_attention import Entmax, Sparsefinder
from crisp_attention.errors import OptionError
from crisp_attention.methods.layouts import Window
from crisp_attention.methods.rows import Rows
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.sparsefinder.quality import Quality
from crisp_attention.sparsefinder.scoring import score
from crisp_attention.sparsefinder.settings import BASELINES, Ends, Setting, settings
from crisp_attention.sparsefinder.study import study

SCORES = ["sparsity", "recall", "precision", "exact", "kept_mass"]


@pytest.fixture
def run(crisp_command, trained, reviews, tmp_path):
    def made(*words, output=None):
        given = (
            "--model",
            trained,
            "--dataset",
            reviews,
            "--output",
            output or tmp_path / "study",
            "--quick",
        )
        status, printed, said = crisp_command("sparsefinder", "study", *given, *words)
        return status, " ".join((printed + said).split())

    return made


@pytest.mark.slow
def test_the_command_writes_tables_figures_and_a_page_that_says_what_was_found(run, tmp_path):
    folder = tmp_path / "study"
    status, text = run("--rank", 3, "--examples", 16, "--quality-examples", 8)
    assert status == 0, text
    table = pd.read_csv(folder / "table.csv")
    assert table.columns[:5].tolist() == ["variant", "setting", "seed", "layer", "head"]
    assert {*SCORES, *(f"{each}_without_window" for each in SCORES)} <= {*table.columns}
    assert {*table["variant"]} == {"distance", "quantize", "kmeans", "window + ends", *BASELINES}
    assert (table.groupby("setting").size() == 4).all()  # two layers with entmax, two heads
    assert table["recall"].between(0, 1).all()
    # the same graph is in each comparison, and a wider window holds more of it
    assert (table.groupby(["layer", "head"])["gold_sparsity"].nunique() == 1).all()
    means = table.groupby("setting")[["sparsity", "recall"]].mean()
    narrow, wide = (means.loc[f"Ends:window={width}"] for width in (1, 27))
    assert (wide["recall"], wide["sparsity"]) == (1, 0)
    assert narrow["recall"] < 1
    assert narrow["sparsity"] > 0.3
    quality = pd.read_csv(folder / "quality.csv")
    assert quality.iloc[0][["variant", "sparsity"]].tolist() == ["full", 0]
    all_pairs = quality.set_index("setting")["quality"]
    assert all_pairs["Ends:window=27"] == all_pairs["full"]
    page = (folder / "study.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert "the best variant of Sparsefinder against" in page
    assert {each.name for each in (folder / "figures").iterdir()} == {
        "recall.svg",
        "exact.svg",
        "quality.svg",
    }
    assert "Recall: " in text


def test_a_folder_of_other_things_is_refused_and_an_interrupted_study_leaves_the_one_before(
    run, tmp_path, monkeypatch
):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "table.csv").write_text("earlier")

    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("crisp_attention.sparsefinder.study.score", interrupted)
    assert run()[0] == 130
    assert (folder / "table.csv").read_text() == "earlier"
    assert [each.name for each in tmp_path.iterdir()] == ["study"]
    (folder / "notes.txt").touch()
    status, text = run()
    assert status == 2
    assert "holds files that do not belong to a study of Sparsefinder (notes.txt)" in text
    status, text = run("--seeds", 0, output=tmp_path / "new")
    assert (status, "--seeds must be a whole number of at least 1, got 0" in text) == (2, True)


@pytest.fixture
def language_model() -> BertForMaskedLM:
    body = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=32, **body)).eval()
    return crisp.sparsify(model, Entmax(1.5))


def ids(count: int, length: int = 16) -> list[dict]:
    return [{"input_ids": torch.randint(0, 40, (4, length))} for _ in range(count)]


def test_a_language_model_is_studied_by_its_loss_and_does_not_change(language_model):
    model, held = language_model, ids(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(model) -> float:
        with torch.no_grad():
            return float(model(**held[0], labels=held[0]["input_ids"]).loss)

    chosen = [
        Setting("distance", Sparsefinder("distance", rank=2, threshold="inf")),
        Setting("kmeans", Sparsefinder(rank=2, clusters=4)),
        Setting("kmeans", Sparsefinder(rank=2, clusters=4, window=9), main=False),
        Setting("window", Window(3)),
    ]
    quality = Quality("masked-LM loss", loss, higher_is_better=False)
    found = study(model, ids(2), held, chosen, quality=quality, seeds=2, progress=False)
    means = found.table.groupby("setting")[["recall", "exact", "sparsity"]].mean()
    assert means.loc["sparsefinder:variant=distance:rank=2:threshold=inf"].tolist() == [1, 1, 0]
    kmeans = found.table[found.table["setting"] == "sparsefinder:variant=kmeans:rank=2:clusters=4"]
    assert kmeans.groupby("layer")["recall_without_window"].mean().nunique() == 2
    one, other = (kmeans[kmeans["seed"] == seed]["recall"].tolist() for seed in (0, 1))
    assert one != other
    outcome = found.outcome.set_index(["setting", "seed"])["quality"]
    assert len(outcome) == 1 + 2 + 2 + 1
    assert outcome["full", 0] == loss(model)
    assert outcome[chosen[0].name, 0] == pytest.approx(outcome["full", 0], abs=1e-6)
    assert outcome["window:width=3", 0] != outcome["full", 0]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].equal(value) for name, value in before.items())
    assert {str(each) for each in SparseModel.of(model).methods.values()} == {"entmax:alpha=1.5"}


def test_a_score_is_that_of_the_layout_with_what_was_fitted_for_it(language_model):
    setting, held = Setting("kmeans", Sparsefinder(rank=2, clusters=4)), ids(1)
    scored = score(language_model, ids(1), held, [setting], seeds=1, progress=False)
    seen: list[Rows] = []
    with borrowed(
        language_model,
        observe=lambda own, _, each: own.index == 1 and seen.append(each.rows),
        evaluate=True,
    ):
        language_model(**held[0])
    (rows,) = seen
    gold = Entmax(1.5).weigh(rows, rows.valid.expand_as(rows.scores)) > 0
    shown = setting.layout.visible(replace(rows, parameters=scored.values[setting.name, 0][1]))
    expected = ((shown & gold).sum((2, 3)) / gold.sum((2, 3))).mean(dim=0)
    table = scored.table[scored.table["layer"] == 1]
    assert table["recall"].tolist() == pytest.approx(expected.tolist())
    assert table["sparsity"].tolist() == pytest.approx((1 - shown.float().mean(dim=(0, 2, 3))).tolist())


def test_settings_are_those_of_the_paper_and_what_changes_nothing_by_seed_is_scored_once():
    every = settings(rank=8)
    assert len({each.name for each in every}) == len(every)
    kmeans = [each for each in every if each.variant == "kmeans" and each.main]
    assert len(kmeans) == 15  # 8 numbers of clusters, top 1 and 2, without 2 of 2
    ranks = {(each.variant, each.layout.rank) for each in every if each.learned}
    assert ranks == {("distance", 8), ("quantize", 8), ("quantize", 2), ("kmeans", 8)}
    assert {len([e for e in every if e.variant == v]) for v in ("kmeans", "distance", "routing")} == {105}
    assert Setting("window", Window(3)).at(1) is None
    assert Setting("kmeans", Sparsefinder()).at(1) == Sparsefinder()
    assert Setting("ends", Ends(3)).at(0) == Ends(3)


def test_a_setting_that_one_layer_refuses_is_left_out_of_all():
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    model = crisp.sparsify(BartModel(BartConfig(vocab_size=40, **sizes, **heads)).eval(), Entmax(1.5))
    quantize, window = Setting("quantize", Sparsefinder("quantize", rank=2)), Setting("window", Window(3))
    quality = Quality("states", lambda model: 0.0)
    found = study(model, ids(2), ids(1), [quantize, window], quality=quality, seeds=1, progress=False)
    assert set(found.table["setting"]) == {window.name}
    assert found.table["layer"].nunique() == 2
    (note,) = found.notes
    assert note.startswith(f"left out: {quantize.name} (sparsefinder's buckets depend on all tokens")
    assert (found.fitted_to, found.scored_on) == (8, 4)
    with pytest.raises(ValueError, match=r"no setting is left to compare; sparsefinder:variant=quantize"):
        study(model, ids(2), ids(1), [quantize], seeds=1, progress=False)


def test_what_cannot_be_is_said_before_anything_is_fitted(language_model, monkeypatch):
    monkeypatch.setattr("crisp_attention.sparsefinder.scoring.show", None)
    wide = Setting("kmeans", Sparsefinder(rank=9))
    with pytest.raises(ValueError, match="rank must be at most the width of a head, 8, got 9"):
        study(language_model, ids(1), ids(1), [wide], progress=False)
    crisp.sparsify(language_model, Entmax(1.5), phase="train")
    with pytest.raises(OptionError, match=r"is sparse in training only \(phase 'train'\)"):
        study(language_model, ids(1), ids(1), [Setting("window", Window(3))], progress=False)


def test_a_setting_whose_sample_is_too_small_is_left_out(language_model):
    few = [{"input_ids": torch.randint(0, 40, (2, 3))}]
    chosen = [Setting("kmeans", Sparsefinder(rank=2, clusters=n)) for n in (2, 9)]
    found = study(language_model, few, few, chosen, seeds=1, progress=False)
    assert set(found.table["setting"]) == {chosen[0].name}
    assert "too small for 9 clusters" in found.notes[0]
