"""Curves of kept mass: against the rules themselves at every sparsity, and against loops in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crisp_attention import BlockTopK, Method, TopK
from crisp_attention.insight.measuring import LayerTotals
from crisp_attention.insight.profile.curves import LayerSums
from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.pairs import causal_mask
from tests import oracle
from tests.cases import attention, normal, self_attention

TARGETS = Targets.of(3, further=[0.33])
LENGTH = 11
KEYS = torch.arange(LENGTH)
RIGHT = (torch.tensor([11, 7, 4])[:, None] > KEYS)[:, None, None]
LEFT = RIGHT.flip(-1)
CAUSAL = causal_mask(LENGTH, LENGTH, torch.device("cpu"))
PER_HEAD = normal(3, 4, LENGTH, LENGTH, seed=5) > -1
MASKS = {
    "none": None,
    "padded right": RIGHT,
    "padded left": LEFT,
    "causal": CAUSAL,
    "causal, padded right": CAUSAL & RIGHT,
    "causal, padded left": CAUSAL & LEFT,
    "every head its own": PER_HEAD,
}
masks = pytest.mark.parametrize("valid", MASKS.values(), ids=MASKS.keys())


def call(method: Method, valid: Tensor | None, *, dtype=torch.float64, equal: bool = False) -> Observation:
    """What one call on grouped heads computed; `equal`: with the same score for all keys of half of the heads."""
    draws: list[Observation] = []
    q, k, v = self_attention(batch=3, length=LENGTH, dtype=dtype)
    if equal:
        q[:, ::2] = 0
    attention(q, k, v, method, scale=0.7, valid=valid, observe=draws.append)
    return draws[0]


def sums(valid: Tensor | None, *, cross: bool = False, **how) -> LayerSums:
    return LayerSums.of(call(Method(), valid, **how), TARGETS, cross=cross)


@pytest.mark.parametrize(
    ("valid", "equal", "dtype"),
    [
        *((MASKS[name], False, torch.float64) for name in ("none", "causal, padded left", "padded right")),
        *((MASKS[name], True, torch.float64) for name in ("none", "causal, padded right")),
        *((MASKS[name], True, torch.float32) for name in ("padded left", "every head its own")),
        *((MASKS[name], False, torch.float32) for name in ("causal", "every head its own")),
    ],
)
@pytest.mark.parametrize("name", ["topk", "block_topk"])
def test_at_every_sparsity_it_is_what_the_method_itself_keeps(name, valid, equal, dtype):
    curve = sums(valid, equal=equal, dtype=dtype).curves[name]
    assert TARGETS.sparsities[0] == 0
    assert 0.33 in TARGETS.sparsities
    for index, sparsity in enumerate(TARGETS.sparsities):
        kept = LayerTotals.of(call(TARGETS.method(name, sparsity), valid, equal=equal, dtype=dtype))
        assert curve.pairs[:, index].tolist() == kept.kept_pairs.tolist(), sparsity
        assert curve.mass[:, index] == pytest.approx(
            kept.kept_mass.numpy(), rel=1e-12 if dtype.itemsize == 8 else 1e-6
        )


@masks
def test_topk_entropy_and_distance_in_plain_loops(valid):
    seen, found = call(Method(), valid), sums(valid)
    allowed, scores = seen.valid.numpy(), seen.scores.numpy()
    real = np.broadcast_to(seen.queries.numpy(), scores.shape[:-1])
    rows, entropy, distance = np.zeros((3, 4))
    pairs, mass = np.zeros((2, 4, len(TARGETS.sparsities)))
    for b, h, i in np.ndindex(*real.shape):
        seeing = np.flatnonzero(allowed[b, h, i])
        if not real[b, h, i] or not len(seeing):
            continue
        odds = [math.exp(scores[b, h, i, j]) for j in seeing]
        weights = [odd / math.fsum(odds) for odd in odds]
        own = sum(j <= min(i, seeing[-1]) for j in seeing)
        rows[h] += 1
        entropy[h] -= math.fsum(w * math.log(w) for w in weights)
        distance[h] += math.fsum(w * abs(place - own) for place, w in enumerate(weights, 1))
        for index, sparsity in enumerate(TARGETS.sparsities):
            count = oracle.count(len(seeing), sparsity, 1)
            pairs[h, index] += count
            mass[h, index] += math.fsum(sorted(weights)[-count:])
    assert found.rows.tolist() == rows.tolist()
    assert found.entropy == pytest.approx(entropy)
    assert found.distance == pytest.approx(distance)
    assert found.curves["topk"].pairs.tolist() == pairs.tolist()
    assert found.curves["topk"].mass == pytest.approx(mass)


def test_cross_attention_has_neither_distance_nor_blocks():
    found = sums(RIGHT, cross=True)
    assert np.isnan(found.distance).all()
    assert set(found.curves) == {"topk"}
    assert found.entropy.tolist() == sums(RIGHT).entropy.tolist()


@pytest.mark.parametrize("valid", [RIGHT, CAUSAL & LEFT, PER_HEAD], ids=["right", "causal", "per head"])
def test_two_calls_add_up_to_one_call_on_both(valid):
    seen = call(Method(), valid)
    unknown = dict.fromkeys(("_products", "_scores", "_valid"))
    parts = [
        LayerSums.of(
            Observation(
                replace(
                    seen.rows,
                    query=seen.rows.query[at],
                    key=seen.rows.key[at],
                    mask=seen.valid[at],
                    **unknown,
                ),
                seen.keep[at],
                seen.queries.expand(3, -1, -1)[at],
            ),
            TARGETS,
            cross=False,
        )
        for at in (slice(0, 1), slice(1, 3))
    ]
    parts[0].add(parts[1])
    compare(parts[0], sums(valid), 1e-12)


def compare(one: LayerSums, other: LayerSums, tolerance: float) -> None:
    for name in ("rows", "entropy", "distance"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=tolerance), name
    for name, curve in one.curves.items():
        assert curve.pairs.tolist() == other.curves[name].pairs.tolist(), name
        assert curve.mass == pytest.approx(other.curves[name].mass, rel=tolerance), name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_further_changes_nothing(side, causal):
    def padded(extra: int) -> LayerSums:
        width = LENGTH + extra
        before = extra if side == "left" else 0
        q, k, v = (
            torch.nn.functional.pad(t, (0, 0, before, extra - before), value=0.3)
            for t in self_attention(batch=3, length=LENGTH)
        )
        valid = torch.nn.functional.pad(LEFT if side == "left" else RIGHT, (before, extra - before))
        valid = valid & causal_mask(width, width, q.device) if causal else valid
        draws: list[Observation] = []
        attention(q, k, v, Method(), scale=0.7, valid=valid, observe=draws.append)
        return LayerSums.of(draws[0], TARGETS, cross=False)

    for extra in (1, 8):
        compare(padded(extra), padded(0), 1e-12)


def test_the_curves_do_not_depend_on_which_methods_are_the_defaults():
    assert TARGETS.method("topk", 0.5) == Method(rule=TopK(0.5))
    assert TARGETS.method("block_topk", 0.5) == Method(layout=BlockTopK(0.5, block_size=3))
