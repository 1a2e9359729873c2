"""Sparsefinder with given projections: its graph, pair by pair, and what it must not depend on."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import Method, Sparsefinder
from crisp_attention.kernels import dispatch
from crisp_attention.methods.blocks import Blocks
from crisp_attention.methods.layouts.sparsefinder import groups
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.testing import LayoutContract

HEADS, GROUPS, WIDTH = 4, 2, 6


def held(layout: Sparsefinder) -> dict[str, Tensor]:
    """Projections and centres drawn at random, as a layer holds them."""
    draw = torch.Generator().manual_seed(3)
    sizes = {name: each.value.shape for name, each in layout.parameters(Shape(HEADS, GROUPS, WIDTH)).items()}
    return {f"layout.{name}": torch.randn(size, generator=draw) for name, size in sizes.items()}


def rows_of(layout: Sparsefinder, length: int, batch: int = 2, seed: int = 0, **more) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, HEADS, length, WIDTH, generator=draw, dtype=torch.float64)
    key = torch.randn(batch, GROUPS, length, WIDTH, generator=draw, dtype=torch.float64)
    return Rows(query, key, parameters=held(layout), **more)


KMEANS = Sparsefinder(rank=2, clusters=5)
DISTANCE = Sparsefinder("distance", rank=2, threshold=4.0)
QUANTIZE = Sparsefinder("quantize", rank=2, bucket_size=2)
BLOCKS = Sparsefinder(rank=2, clusters=3, block_size=4, window=1)


class TestKmeans(LayoutContract):
    layout, parameters = KMEANS, held(KMEANS)


class TestDistance(LayoutContract):
    layout, parameters = DISTANCE, held(DISTANCE)


class TestQuantize(LayoutContract):
    layout, parameters, causal = QUANTIZE, held(QUANTIZE), False


class TestBlocks(LayoutContract):
    layout, parameters, causal = BLOCKS, held(BLOCKS), False


def meant(layout: Sparsefinder, rows: Rows, b: int, h: int, real: list[int]) -> set[tuple[int, int]]:
    """The visible pairs of real tokens of an encoder, in plain loops."""
    weight = {name.removeprefix("layout."): value[h].numpy() for name, value in rows.parameters.items()}
    offset = weight.get("offset", np.zeros(1))
    q = {i: rows.query[b, h, i].numpy() @ weight["query"] + offset.reshape(-1) for i in real}
    k = {j: rows.key[b, h * GROUPS // HEADS, j].numpy() @ weight.get("key", weight["query"]) for j in real}
    place = {token: number for number, token in enumerate(real)}
    n, first = len(real), layout.global_tokens

    def clusters(point: np.ndarray, centers: np.ndarray) -> set[int]:
        return set(np.argsort(((centers - point) ** 2).sum(axis=-1))[: layout.top])

    def bucket(points: dict[int, np.ndarray], i: int, c: int) -> int:
        return sorted(points, key=lambda j: (points[j][c], place[j])).index(i) // layout.bucket_size

    def near(i: int, j: int) -> bool:
        if layout.variant == "distance":
            return ((q[i] - k[j]) ** 2).sum() < layout.threshold
        if layout.variant == "kmeans":
            return any(clusters(q[i], run) & clusters(k[j], run) for run in weight["centers"])
        return any(bucket(q, i, c) == bucket(k, j, c) for c in range(layout.rank))

    def fixed(i: int, j: int) -> bool:
        ends = set(range(first)) | set(range(n - first, n))
        return (
            abs(i - j) <= layout.window // 2 if layout.window and not ends & {i, j} else bool(ends & {i, j})
        )

    return {(i, j) for i, j in itertools.product(real, real) if near(i, j) or fixed(place[i], place[j])}


@given(
    variant=st.sampled_from(["kmeans", "distance", "quantize"]),
    length=st.integers(1, 9),
    shared=st.booleans(),
    top=st.integers(1, 2),
    runs=st.integers(1, 2),
    window=st.sampled_from([0, 1, 3]),
    ends=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_it_is_what_it_means(variant, length, shared, top, runs, window, ends, seed):
    layout = Sparsefinder(
        variant,
        2,
        4,
        top,
        runs,
        threshold=3.0,
        bucket_size=2,
        window=window,
        global_tokens=ends,
        shared=shared,
    )
    real = torch.ones(2, 1, 1, length, dtype=torch.bool)
    real[1, ..., : length // 2] = length < 2
    rows = rows_of(layout, length, seed=seed, mask=real)
    seen = layout.visible(rows).expand(2, HEADS, length, length)
    for b, h in itertools.product(range(2), range(HEADS)):
        there = [int(i) for i in real[b, 0, 0].nonzero()[:, 0]]
        found = {(i, j) for i, j in seen[b, h].nonzero().tolist() if i in there}
        assert found == meant(layout, rows, b, h, there)


@given(
    layout=st.sampled_from([KMEANS, QUANTIZE, replace(KMEANS, top=2, runs=2)]),
    length=st.integers(1, 9),
    padding=st.integers(0, 8),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_the_listed_pairs_are_those_that_are_shown(layout, length, padding, causal, seed):
    causal = causal and layout.variant != "quantize"
    real = torch.arange(length) < torch.tensor([[[[length]]], [[[max(1, length - padding)]]]])
    rows = rows_of(layout, length, seed=seed, mask=real, causal=causal)
    shown = (layout.learned.visible(rows) & rows.valid).expand(2, HEADS, length, length)
    listed = layout.pairs(rows)
    assert listed.T.equal(shown.nonzero())


def test_a_token_that_is_not_finite_is_listed_with_all_and_distances_are_not_listed():
    rows = rows_of(KMEANS, 7)
    rows.query[0, 1, 2] = torch.nan
    found = KMEANS.pairs(rows)
    assert found.T.equal(KMEANS.learned.visible(rows).nonzero())
    assert ((found[0] == 0) & (found[1] == 1) & (found[2] == 2)).sum() == 7
    for layout in (DISTANCE, BLOCKS):
        with pytest.raises(ValueError, match=r"with block_size=1, got '(distance|kmeans)' with block_size="):
            layout.pairs(rows_of(layout, 7))


@pytest.mark.parametrize(
    "layout",
    [KMEANS, DISTANCE, QUANTIZE, BLOCKS],
    ids=["kmeans", "distance", "quantize", "blocks"],
)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_reaches_everyone_and_padding_does_not_change_whom(layout, broken):
    layout = layout.learned
    rows = rows_of(layout, 12)
    query, key = rows.query.clone(), rows.key.clone()
    key[0, :, 3], query[0, :, 8] = broken, broken
    rows = replace(rows, query=query, key=key)
    seen = layout.visible(rows).expand(2, HEADS, 12, 12)
    near = slice(0, 4) if layout.block_size > 1 else slice(3, 4)
    assert seen[0, :, :, near].all()
    assert seen[0, :, 8].all()
    padded = [torch.cat([torch.zeros_like(each[:, :, :4]), each], dim=2) for each in (query, key)]
    mask = (torch.arange(16) >= 4)[None, None, None]
    moved = Rows(*padded, parameters=rows.parameters, mask=mask)
    assert layout.visible(moved).expand(2, HEADS, 16, 16)[:, :, 4:, 4:].equal(seen)
    if layout.variant != "distance" and layout.block_size == 1:
        listed = torch.zeros_like(seen)
        listed[tuple(layout.pairs(rows))] = True
        assert listed.equal(seen)


@pytest.mark.parametrize("layout", [KMEANS, DISTANCE, QUANTIZE], ids=lambda layout: layout.variant)
def test_blocks_of_one_token_are_the_tokens(layout):
    real = torch.arange(13) < torch.tensor([[[[13]]], [[[9]]]])
    rows = rows_of(layout, 13, mask=real)
    blocks = Blocks.of(rows, 1)
    assert blocks is not None
    pairs = layout._graph(rows, blocks).pairs(rows) & rows.valid
    queries = real.transpose(2, 3)
    assert (pairs & queries).equal(layout.visible(rows) & queries)


@pytest.mark.parametrize("layout", [KMEANS, DISTANCE, QUANTIZE], ids=lambda layout: layout.variant)
def test_equal_projections_are_always_a_pair(layout):
    rows = rows_of(layout.learned, 12)
    rows = replace(rows, query=rows.key.repeat_interleave(HEADS // GROUPS, dim=1))
    assert layout.learned.visible(rows).diagonal(dim1=2, dim2=3).all()


def test_a_bucket_holds_as_many_as_it_should():
    states, real = torch.randn(3, 2, 23, 4), torch.ones(1, 1, 23, dtype=torch.bool)
    found = groups.buckets(states, real, 5)
    for bucket in range(4):
        assert ((found == bucket).sum(dim=2) == 5).all()
    assert ((found == 4).sum(dim=2) == 3).all()


@pytest.mark.parametrize(
    "layout",
    [KMEANS, DISTANCE, QUANTIZE, BLOCKS],
    ids=["kmeans", "distance", "quantize", "blocks"],
)
def test_the_mates_of_a_batch_change_nothing(layout):
    real = torch.arange(16) < torch.tensor([[[[16]]], [[[11]]]])
    rows = rows_of(layout, 16, mask=real)
    alone = Rows(rows.query[1:, :, :11], rows.key[1:, :, :11], parameters=rows.parameters)
    wanted = layout.visible(alone).expand(1, HEADS, 11, 11)
    assert layout.visible(rows)[1:, :, :11, :11].equal(wanted)
    written_out = replace(rows, mask=real.expand(-1, -1, 16, -1).contiguous(), _valid=None)
    assert layout.visible(written_out)[1:, :, :11, :11].equal(wanted)


def test_an_infinite_threshold_shows_everything_and_is_valid_json():
    layout = Sparsefinder("distance", threshold=float("inf"))
    assert (
        layout
        == Sparsefinder("distance", threshold="inf")
        == crisp.parse("sparsefinder:variant=distance:threshold=inf").layout
    )
    saved = json.dumps(Method(layout, crisp.Entmax()).to_dict(), allow_nan=False)
    assert Method.from_dict(json.loads(saved)).layout == layout
    query, key, value = (torch.randn(2, 4, 9, 6) for _ in range(3))
    rule = crisp.Entmax(1.5)
    found = crisp.attention(query, key, value, Method(layout, rule), backend="reference")
    assert found.equal(crisp.attention(query, key, value, rule, backend="reference"))


def test_rows_whose_support_is_visible_are_those_of_full_entmax():
    layout = Sparsefinder("kmeans", rank=2, clusters=2)
    contract = TestKmeans()
    contract.parameters = held(layout)
    call = contract.call(Method(layout, crisp.Entmax(1.5)), 20)
    call = replace(call, query=call.query.float(), key=call.key.float(), value=call.value.float())
    found, _ = dispatch.attention(call, dispatch.REFERENCE, weights=True)
    full, weights = dispatch.attention(
        replace(call, method=Method(rule=crisp.Entmax(1.5))), dispatch.REFERENCE, weights=True
    )
    inside = ~((weights > 0) & ~layout.visible(call.rows)).any(dim=-1)
    assert 0.2 < inside.float().mean() < 0.98
    torch.testing.assert_close(found[inside], full[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (QUANTIZE, "variant 'quantize' cannot be used in causal, packed, windowed or cross-attention"),
        (BLOCKS, "blocks of 4 tokens needs self-attention in which all queries see the same keys"),
    ],
    ids=["quantize", "blocks"],
)
def test_what_depends_on_later_tokens_is_refused_in_decoders(layout, message):
    causal = rows_of(layout, 9, causal=True)
    masked = rows_of(layout, 9, mask=torch.ones(9, 9, dtype=torch.bool).tril()[None, None])
    for rows in (causal, masked):
        with pytest.raises(ValueError, match=message):
            layout.visible(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "knn"}, "variant must be one of kmeans, distance, quantize, got 'knn'"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"clusters": 0}, "clusters must be"),
        ({"top": 17}, "top must be at most clusters, 16, got 17"),
        ({"window": 4}, "window must be 0 or an odd whole number, got 4"),
        ({"threshold": 0}, r"threshold must be in \(0, inf\), got 0"),
        ({"threshold": float("nan")}, "threshold must be in"),
        ({"block_size": 0}, "block_size must be"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Sparsefinder(**options)


def test_without_its_parameters_it_names_crisp_fit():
    states = torch.randn(1, 2, 5, 4)
    for layout in (Sparsefinder(), Sparsefinder(block_size=2)):
        with pytest.raises(ValueError, match=r"crisp\.fit\(model, batches\)"):
            crisp.attention(states, states, states, Method(layout, crisp.Entmax()))
