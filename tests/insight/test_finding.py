"""Sparsefinder fitted by `crisp.fit`: to learn what it should, exactly where it can, and to refuse what it cannot."""

import copy

import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import crisp_attention as crisp
from crisp_attention import Dense, Entmax, Full, Method, Sparsefinder, TopK
from crisp_attention.insight.graphs import FullGraph, kept
from crisp_attention.kernels import dispatch
from crisp_attention.methods.layouts.sparsefinder import fitting
from crisp_attention.methods.layouts.sparsefinder.fitting import Finder
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.parameters import parameters_of
from crisp_attention.runs.sources import minilm_folder
from tests.models.tiny import BATCH, distilbert, layers_of, llama, logits

RULE = Entmax(1.5)


@pytest.fixture(scope="module", autouse=True)
def _fewer_steps():
    """Fitting ends after a fifth of the steps at the latest, with less learned, but enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STEPS", 200)
        yield


@pytest.fixture(scope="module")
def texts(data_folder):
    """Batches of SST-2, for MiniLM."""
    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = pd.read_parquet(data_folder / "sst2" / "train.parquet")["sentence"].head(96).tolist()
    return [
        dict(tokenizer(sentences[i : i + 16], padding=True, return_tensors="pt")) for i in range(0, 96, 16)
    ]


@pytest.fixture(scope="module")
def minilm(texts):
    """MiniLM with entmax in its first layer, and a finder fitted to it."""
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    crisp.sparsify(model, Method(Sparsefinder(clusters=4), RULE), layers=[0])
    return model, crisp.fit(model, texts, progress=False)


def first_layer(model, batch, method) -> tuple[torch.Tensor, Rows]:
    """The heads of the first layer (B, L, H, D) with a method of the same parameters, and its rows."""
    seen = []
    attention = model.encoder.layer[0].attention.self
    hook = attention.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    with borrowed(
        model,
        methods=lambda own: own and method,
        observe=lambda settings, _, each: settings.index or seen.append(each.rows),
        evaluate=True,
    ):
        model(**batch)
    hook.remove()
    rows, output = seen
    return output.unflatten(-1, (12, 32)), rows


def test_a_row_whose_support_was_found_is_that_of_full_entmax_in_a_model_on_text(minilm, texts):
    model, done = minilm
    layout = Sparsefinder(clusters=4)
    found, rows = first_layer(model, texts[0], Method(layout, RULE))
    full, _ = first_layer(model, texts[0], Method(rule=RULE))
    gold, _ = kept(RULE, rows, rows.valid)
    exact = ~(gold & ~layout.visible(rows)).any(dim=-1).transpose(1, 2)
    real = texts[0]["attention_mask"].bool()[..., None] & exact
    assert 0.2 < (real.sum() / texts[0]["attention_mask"].sum() / 12) < 0.99
    torch.testing.assert_close(found[real], full[real], rtol=0, atol=1e-5)
    assert (found - full)[~exact].abs().max() > 1e-2
    table = done.table()
    assert table["head"].tolist() == list(range(12))
    assert ((table["exact"] > table["exact_without_window"]) & (table["recall"] <= 1)).all()


def test_it_finds_more_than_clusters_at_random(minilm, texts):
    model, done = minilm
    held = parameters_of(layers_of(model)[0].module)
    rows = first_layer(model, texts[0], Method(Sparsefinder(clusters=4), RULE))[1]
    layout = Sparsefinder(clusters=4, window=0, global_tokens=0)

    def margin(parameters) -> float:
        """Recall less the share of all pairs that is shown: 0 for a graph that is drawn at random."""
        own = Rows(rows.query, rows.key, rows.scale, rows.mask, parameters=parameters)
        gold, _ = kept(RULE, own, own.valid)
        seen = layout.visible(own) & own.valid
        return ((seen & gold).sum() / gold.sum() - seen.sum() / own.valid.expand_as(gold).sum()).item()

    draw = torch.Generator().manual_seed(0)
    at_random = [
        margin({name: torch.randn(value.shape, generator=draw) for name, value in held.items()})
        for _ in range(10)
    ]
    assert margin(held) > max(at_random)
    table = done.table()
    assert table["recall_without_window"].mean() > 1 - table["sparsity_without_window"].mean() + 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_another_and_saved_it_is_the_same(texts, minilm, tmp_path):
    def fitted(seed: int) -> torch.nn.Module:
        model = crisp.sparsify(
            AutoModel.from_pretrained(minilm_folder()).eval(),
            Method(Sparsefinder(clusters=4), RULE),
            layers=[0],
        )
        crisp.fit(model, texts[:2], seed=seed, progress=False)
        return model

    one, same, other = fitted(0), fitted(0), fitted(1)
    with torch.no_grad():
        states = [model(**texts[2]).last_hidden_state for model in (one, same, other)]
        assert states[0].equal(states[1])
        assert not states[0].equal(states[2])
        one.save_pretrained(tmp_path)
        assert crisp.load(tmp_path)(**texts[2]).last_hidden_state.equal(states[0])


def test_another_rule_s_pairs_can_be_found_with_their_output_error(texts):
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    layout = Sparsefinder("distance", threshold="inf")
    crisp.sparsify(model, Method(layout, TopK(0.5)), layers=[0])
    everything = crisp.fit(model, texts[:1], progress=False).table()
    assert (everything["recall"] == 1).all()
    assert everything["output_error"].abs().max() < 1e-5
    crisp.sparsify(model, Method(Sparsefinder(clusters=2), TopK(0.5)), layers=[0])
    some = crisp.fit(model, texts[:1], gold=TopK(0.8), progress=False).table()
    assert (some["gold_sparsity"] > 0.7).all()
    assert (some["output_error"] > 0).equals(some["exact"] < 1)
    assert some["output_error"].mean() > 0.1


def test_blocks_are_fitted_and_their_graph_trains(texts):
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    crisp.sparsify(model, Method(Sparsefinder(clusters=2, block_size=4, window=1), RULE), layers=[0])
    table = crisp.fit(model, texts, progress=False).table()
    assert ((table["recall"] > 0.3) & (table["sparsity"] > 0.05)).any()
    model.train()(**texts[0]).last_hidden_state.square().mean().backward()
    weight = model.encoder.layer[0].attention.self.query.weight
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().sum() > 0


def test_of_long_blocks_of_which_an_example_has_one_some_are_trained_on():
    layout, shape = Sparsefinder("distance", rank=2, block_size=64), Shape(1, 1, 4)
    finder = Finder(layout, shape, lambda rows: rows.products > 1, seed=0)
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(6, 1, 128, 4, generator=draw) for _ in range(2))
    finder.see(Rows(query, key))
    (sample,) = finder.samples
    assert sample.held_out.shape == (6, 1)
    assert sample.held_out.sum() == 1
    assert finder._some(sample).real.sum() == 5


@pytest.mark.parametrize("block_size", [1, 64])
def test_one_example_at_a_time_is_trained_on_and_held_out(block_size, monkeypatch):
    layout = Sparsefinder("distance", rank=2, block_size=block_size)
    draw = torch.Generator().manual_seed(0)
    finder = Finder(layout, Shape(1, 1, 4), lambda rows: rows.products > 1, seed=0)
    for _ in range(24):
        query, key = (torch.randn(1, 1, 256, 4, generator=draw) for _ in range(2))
        finder.see(Rows(query, key))
    held_out = sum(int(sample.held_out.sum()) for sample in finder.samples)
    assert held_out == -(-(finder.units - 1) // fitting.HELD_OUT)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "STEPS", 0)
        untrained = copy.deepcopy(finder).values()["query"]
    assert not finder.values()["query"].equal(untrained)


def test_a_single_query_cannot_be_held_out():
    finder = Finder(
        Sparsefinder("distance", rank=2, block_size=64), Shape(1, 1, 4), lambda r: r.valid, seed=0
    )
    finder.see(Rows(torch.randn(1, 1, 50, 4), torch.randn(1, 1, 50, 4)))
    with pytest.raises(
        ValueError, match="at least 2 queries, one of which is held out, got one block of 64 tokens"
    ):
        finder.values()


def test_fitting_and_scoring_are_exact_under_autocast_and_inference_mode_is_refused(monkeypatch):
    model = crisp.sparsify(distilbert(), Method(Sparsefinder("distance", rank=2), RULE))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode\(\) does not allow"):
        crisp.fit(model, [BATCH, BATCH], progress=False)
    under_autocast = []

    def watched(owner, name):
        function = getattr(owner, name)

        def watch(*given, **more):
            under_autocast.append((name, torch.is_autocast_enabled("cpu")))
            return function(*given, **more)

        monkeypatch.setattr(owner, name, watch)

    watched(Finder, "see")
    watched(Finder, "_loss")
    watched(Finder, "values")
    watched(FullGraph, "scores")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crisp.fit(model, [BATCH, BATCH], progress=False)
    assert set(under_autocast) == {(name, False) for name in ("see", "_loss", "values", "scores")}


def test_only_the_layer_that_is_fitted_is_observed(monkeypatch):
    observed = []
    attention = dispatch.attention

    def watch(call, *given, observe=None, **more):
        observed.append(observe is not None)
        return attention(call, *given, observe=observe, **more)

    monkeypatch.setattr(dispatch, "attention", watch)
    model = crisp.sparsify(distilbert(), Method(Sparsefinder("distance", rank=2), RULE))
    crisp.fit(model, [BATCH], progress=False)
    layers = len(layers_of(model))
    assert (len(observed), sum(observed)) == (layers**2, layers)


def test_a_perfect_graph_of_top_k_has_no_error_under_softmax_and_one_under_the_rule_itself():
    draw = torch.Generator().manual_seed(0)
    rows = Rows(*(torch.randn(2, 2, 12, 8, generator=draw) for _ in range(2)))
    value, rule = torch.randn(2, 2, 12, 8, generator=draw), TopK(0.8)
    full = FullGraph.of(rule, rows, value)

    class Gold(Full):
        def visible(self, rows):
            return full.gold

    dense, once_more = (full.scores(Gold(), rule=each).means() for each in (Dense(), rule))
    assert dense["recall"] == once_more["recall"] == [1, 1]
    assert max(dense["output_error"]) < 1e-6
    assert min(once_more["output_error"]) > 0.3


def test_negatives_are_valid_earlier_and_no_positives():
    layout, shape = Sparsefinder("distance", rank=2), Shape(2, 1, 4)
    finder = Finder(layout, shape, lambda rows: kept(TopK(0.8), rows, rows.valid)[0], seed=0)
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 2, 12, 4, generator=draw), torch.randn(3, 1, 12, 4, generator=draw)
    real = torch.arange(12) < torch.tensor([[[[12]]], [[[9]]], [[[5]]]])
    finder.see(Rows(query, key, mask=real, causal=True))
    (sample,) = finder.samples
    negative = finder._negatives(sample)
    assert not (negative & sample.positive).any()
    assert not (negative & ~sample.candidate).any()
    available, wanted = sample.candidate.sum(-1), sample.positive.sum(-1)
    assert negative.sum(-1).equal(torch.minimum(available, wanted))
    assert not negative.equal(finder._negatives(sample))


def test_the_loss_is_nothing_where_positives_coincide_and_negatives_are_far():
    layout, shape = Sparsefinder("distance", rank=2), Shape(1, 1, 2)
    finder = Finder(layout, shape, lambda rows: rows.valid, seed=0)
    points = torch.tensor([[[[0.0, 0], [0, 0], [1.0, 0]]]])
    positive = torch.tensor([[[[True, True, False]]]])
    sample = fitting.Sample(
        points[:, :, :1], points, positive, ~positive, torch.ones(1, 1).bool(), torch.zeros(1, 1).bool()
    )
    weights = {"query": torch.eye(2)[None]}
    assert finder._loss(weights, sample, ~positive) == 0
    assert finder._loss(weights, sample, positive) == 1  # the margin
    near = fitting.Sample(
        0.5 * points[:, :, :1],
        0.5 * points,
        *(sample.positive, sample.candidate, sample.real, sample.held_out),
    )
    assert finder._loss(weights, near, ~positive).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("build", "method", "message"),
    [
        (
            distilbert,
            Method(Sparsefinder(rank=9), RULE),
            "rank must be at most the width of a head, 8, got 9",
        ),
        (
            distilbert,
            Method(Sparsefinder(clusters=40, top=1), RULE),
            r"a sample of 8 tokens is too small for 40 clusters",
        ),
        (
            llama,
            Method(Sparsefinder(block_size=2), RULE),
            "blocks of 2 tokens needs self-attention in which all queries see",
        ),
        (llama, Method(Sparsefinder("quantize"), RULE), "variant 'quantize' cannot be used in causal"),
        (
            distilbert,
            Method(Sparsefinder(), TopK(0.0)),
            r"the rule of '.*\+topk:sparsity=0\.0' keeps every pair",
        ),
    ],
    ids=["rank", "clusters", "causal blocks", "causal buckets", "nothing to predict"],
)
def test_what_cannot_be_fitted_changes_nothing(build, method, message):
    model = crisp.sparsify(build(), method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        crisp.fit(model, [BATCH], progress=False)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].equal(value) for name, value in before.items())


def test_unfitted_it_says_so_and_a_finder_of_another_shape_is_refused(tmp_path):
    method = Method(Sparsefinder(clusters=2, rank=2), RULE)
    model = crisp.sparsify(distilbert(), method)
    with pytest.raises(ValueError, match=r"call crisp\.fit\(model, batches\) first"):
        logits(model)
    crisp.fit(model, [BATCH], progress=False)
    state = {name: value for name, value in model.state_dict().items() if "crisp_learned" in name}
    other = crisp.sparsify(distilbert(), Method(Sparsefinder(clusters=3, rank=2), RULE))
    with pytest.raises(RuntimeError, match=r"size mismatch for .*layout\.centers"):
        other.load_state_dict(state, strict=False)
