"""What a profile answers: by hand, and what its budgets promise."""

import json

import numpy as np
import pytest
import torch

from crisp_attention import BlockTopK, Budgets, Dense, Method, PerHead, Profile, TopK, Window
from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.rows import Rows
from tests.cases import attention, normal

EVEN = [1.0] * 10
PEAKED = [0.92, *[0.08 / 9] * 9]


def seen(*odds: list[float], queries: int = 10) -> Observation:
    """One call whose heads have these odds on 10 keys in every row."""
    scores = torch.tensor(odds, dtype=torch.float64).log()[None, :, None].expand(-1, -1, queries, -1)
    valid = torch.ones_like(scores, dtype=torch.bool)
    return Observation(Rows.of_scores(scores, valid), valid, valid_queries(valid))


def profile(*calls: Observation, cross: tuple[bool, ...] = (False, False, False), **how) -> Profile:
    """One call for each layer a, b, c …"""
    found = Profile(Targets.of(how.get("block_size", 5), how.get("further", [])))
    for layer, (call, is_cross) in enumerate(zip(calls, cross, strict=False)):
        found.observe(layer, "abc"[layer], call, cross=is_cross)
    return found


def drawn(seed: int, heads: int = 3, dtype=torch.float64) -> Observation:
    """A real call with padded examples; some heads are sharper than others."""
    draws: list[Observation] = []
    sharp = torch.linspace(0.2, 3, heads)[:, None, None]
    q, k = (normal(3, heads, 13, 6, seed=seed + i) * sharp for i in (0, 100))
    valid = (torch.tensor([13, 8, 5])[:, None] > torch.arange(13))[:, None, None]
    attention(q, k, k, Method(), scale=1.0, valid=valid, observe=draws.append)
    return draws[0]


def test_the_table_by_hand():
    flat, sharp = profile(seen(EVEN, PEAKED)).table().to_dict("records")
    rest = 0.08 / 9
    assert flat["entropy"] == pytest.approx(np.log(10))
    assert sharp["entropy"] == pytest.approx(-0.92 * np.log(0.92) - 9 * rest * np.log(rest))
    assert flat["distance"] == pytest.approx(3.3)  # the mean of |i - j| over ten by ten
    # to the first key from key i: i; to the others in proportion
    assert sharp["distance"] == pytest.approx(0.92 * 4.5 + rest * (33 - 4.5))
    assert [flat[f"topk_mass_{s}"] for s in (50, 80, 90)] == pytest.approx([0.5, 0.2, 0.1])
    assert [sharp[f"topk_mass_{s}"] for s in (50, 80, 90)] == pytest.approx(
        [0.92 + 4 * rest, 0.92 + rest, 0.92]
    )
    assert [flat[f"topk_sparsity_{m}"] for m in (99, 95)] == pytest.approx([0, 0])
    assert [sharp[f"topk_sparsity_{m}"] for m in (99, 95, 90)] == pytest.approx([0.1, 0.5, 0.9])
    # two blocks of five; a query always keeps its own, and the second block when it is in it
    assert flat["block_topk_mass_50"] == pytest.approx(0.5)
    assert sharp["block_topk_mass_80"] == pytest.approx((0.92 + 4 * rest + 5 * rest) / 2)
    assert flat["block_topk_sparsity_99"] == 0
    assert flat["rows"] == 10


def test_the_curves_begin_dense_and_name_every_target():
    found = profile(seen(EVEN, PEAKED), seen(EVEN), further=[0.33])
    curves = found.curves()
    assert len(curves) == 3 * 2 * 41
    first = curves[curves["target"] == 0]
    assert (first["sparsity"] == 0).all()
    assert (first["mass"] == 1).all()
    one = curves.query("layer == 0 and head == 1 and method == 'topk'").set_index("target")
    assert one.loc[0.33, "sparsity"] == pytest.approx(0.3)  # 7 of 10 keys
    assert one.loc[0.975, ["sparsity", "mass"]].tolist() == pytest.approx([0.9, 0.92])  # one key at least


def test_recommended_for_a_sparsity_by_hand():
    budgets = profile(seen(EVEN, PEAKED)).recommend(sparsity=0.5)
    flat, sharp = budgets.methods["a"].methods
    assert TopK(flat.sparsity).count(torch.ones(10)) == 9
    assert TopK(sharp.sparsity).count(torch.ones(10)) == 1
    assert budgets.expected["sparsity"] == pytest.approx(0.5)
    assert budgets.expected["mass"] == pytest.approx((0.9 + 0.92) / 2)
    assert budgets.expected["uniform"]["sparsity"] == pytest.approx(0.5)
    assert budgets.expected["uniform"]["mass"] == pytest.approx((0.5 + 0.92 + 4 * 0.08 / 9) / 2)
    assert (budgets.expected["method"], budgets.expected["target"]) == ("topk", {"sparsity": 0.5})
    assert json.loads(json.dumps(budgets.expected)) == budgets.expected


def test_recommended_for_a_mass_by_hand():
    budgets = profile(seen(EVEN, PEAKED)).recommend(mass=0.95)
    flat, sharp = budgets.methods["a"].methods
    assert TopK(flat.sparsity).count(torch.ones(10)) == 10
    assert TopK(sharp.sparsity).count(torch.ones(10)) == 5
    assert budgets.expected["sparsity"] == pytest.approx(0.25)
    assert budgets.expected["target"] == {"mass": 0.95}
    assert budgets.expected["uniform"]["sparsity"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["topk", "block_topk"])
@pytest.mark.parametrize("seed", range(6))
def test_budgets_keep_their_promise_at_every_sparsity_and_mass(seed, method):
    found = profile(drawn(seed), drawn(seed + 10, heads=2), drawn(seed + 20), block_size=2)
    for sparsity in found.targets.sparsities:
        budgets = found.recommend(sparsity=sparsity, method=method)
        uniform = found.kept(found.targets.method(method, sparsity))
        assert budgets.expected["sparsity"] >= uniform[0]
        assert budgets.expected["mass"] >= uniform[1]
        assert found.kept(budgets) == (budgets.expected["sparsity"], budgets.expected["mass"])
        assert tuple(budgets.expected["uniform"].values()) == (sparsity, *uniform)
    curves = found.curves().query("method == @method").set_index(["name", "head"])
    for mass in (0.5, 0.9, 1.0):
        for name, layer in found.recommend(mass=mass, method=method).methods.items():
            heads = (
                layer.methods
                if isinstance(layer, PerHead)
                else [layer] * len(found.sums["abc".index(name)].rows)
            )
            for head, own in enumerate(heads):
                one = curves.loc[(name, head)].set_index("target")["mass"]
                assert one[own.sparsity] >= mass
                assert (one[one.index > own.sparsity] < mass).all()


def test_more_is_kept_than_with_one_sparsity_where_heads_differ():
    expected = profile(drawn(0), drawn(1)).recommend(sparsity=0.5).expected
    assert expected["mass"] > expected["uniform"]["mass"] + 0.01


def test_budgets_on_other_data():
    ours, other = profile(seen(EVEN, PEAKED)), profile(seen(PEAKED, EVEN))
    budgets = ours.recommend(sparsity=0.5)
    assert ours.kept(budgets) == pytest.approx((0.5, 0.91))
    assert other.kept(budgets) == pytest.approx((0.5, (0.92 + 8 * 0.08 / 9 + 0.1) / 2))


def test_layers_without_a_method_count_as_dense():
    found = profile(seen(EVEN), seen(EVEN), cross=(False, True))
    assert found.kept(Budgets({"b": Method(rule=TopK(0.5))})) == pytest.approx((0.25, 0.75))
    assert found.kept(TopK(0.5)) == pytest.approx((0.5, 0.5))
    assert found.kept(Dense()) == (0, 1)
    assert found.kept(BlockTopK(0.5, block_size=5)) == pytest.approx((0.25, 0.75))
    assert found.recommend(sparsity=0.5, method="block_topk").methods.keys() == {"a"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a sparsity, such as 0.8, or a mass"),
        ({"sparsity": 0.5, "mass": 0.9}, "give either a sparsity or a mass, got 0.5 and 0.9"),
        ({"sparsity": 0.51}, r"0.95, 0.975; for 0.51 call crisp.profile with sparsities=\[0.51\]"),
        ({"mass": 0}, r"mass must be in \(0, 1\], got 0"),
        ({"sparsity": 0.5, "method": "random"}, "method must be one of topk, block_topk, got 'random'"),
    ],
)
def test_what_cannot_be_recommended(arguments, message):
    with pytest.raises(ValueError, match=message):
        profile(seen(EVEN)).recommend(**arguments)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (Budgets({"z": Method()}), "no layer 'z'; its layers are a, b"),
        (Budgets({"a": PerHead((Method(),) * 3)}), "a has 2 heads, the budgets are for 3"),
        (
            Budgets({"b": Method(layout=BlockTopK(0.5, block_size=5))}),
            "does not fit b, which is cross-attention",
        ),
        (TopK(0.51), "for 0.51 call crisp.profile"),
        (
            TopK(0.5, min_keep=2),
            r"knows TopK\(sparsity\) and .*block_size=5\), not topk:sparsity=0.5:min_keep=2",
        ),
        (TopK(keep=3), "not topk:keep=3"),
        (BlockTopK(0.5, block_size=4), "not block_topk:.*block_size=4"),
        (Window(3), "not window:width=3"),
    ],
)
def test_what_a_profile_does_not_know(budgets, message):
    found = profile(seen(EVEN, EVEN), seen(EVEN), cross=(False, True))
    with pytest.raises(ValueError, match=message):
        found.kept(budgets)


def test_blocks_alone_cannot_be_recommended_for_cross_attention():
    with pytest.raises(ValueError, match="block_topk fits none of the layers: they are all cross-attention"):
        profile(seen(EVEN), cross=(True,)).recommend(sparsity=0.5, method="block_topk")


def test_attention_that_is_not_finite_is_named():
    broken = profile(seen(EVEN), seen([float("nan"), *EVEN[1:]]))
    with pytest.raises(ValueError, match="the attention of b was not finite"):
        broken.recommend(sparsity=0.5)
