"""The picture: everything is labelled, and no words lie on others."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from crisp_attention import Profile
from crisp_attention.insight.profile.curves import Curve, LayerSums
from crisp_attention.insight.profile.targets import Targets


def made_up(layers: int, heads: int, cross: tuple[int, ...] = ()) -> Profile:
    """A profile of a model of this shape, without the model."""
    found, drawn = Profile(Targets.of(16, [])), np.random.default_rng(0)
    pairs = np.tile(1000 * np.ceil(500 * (1 - np.array(found.targets.sparsities))), (heads, 1))
    for layer in range(layers):
        sharp = drawn.uniform(0.03, 1.5, (heads, 1))
        mass = 5e4 * (1 - np.exp(-pairs / pairs[:, :1] / sharp)) / (1 - np.exp(-1 / sharp))
        curves = {"topk": Curve(pairs, mass), "block_topk": Curve(pairs, mass)}
        amounts = [drawn.uniform(0, most, heads) * 5e4 for most in (5, 200)]
        if layer in cross:
            del curves["block_topk"]
            amounts[1] = np.full(heads, np.nan)
        found.names[layer] = f"layers.{layer}"
        found.sums[layer] = LayerSums(np.full(heads, 5e4), *amounts, curves)
    return found


@pytest.fixture
def drawing(monkeypatch, tmp_path):
    """Draws a profile; gives the words that are seen with their boxes in pixels, and the picture's size."""

    def draw(profile: Profile, budgets=None):
        seen = {}
        original = Text.draw

        def record(text, renderer):
            original(text, renderer)
            if text.get_visible() and text.get_text().strip():
                seen[text] = text.get_window_extent(renderer)

        monkeypatch.setattr(Text, "draw", record)
        profile.plot(tmp_path / "profile.png", budgets)
        with Image.open(tmp_path / "profile.png") as picture:
            return [(text.get_text(), box) for text, box in seen.items()], picture.size

    return draw


@pytest.mark.parametrize(
    "shape",
    [(2, 4), *(pytest.param(each, marks=pytest.mark.slow) for each in ((1, 2), (6, 12), (24, 16)))],
    ids=str,
)
def test_every_panel_has_its_words_and_none_overlap(drawing, shape):
    found = made_up(*shape)
    at_80 = found.curves().query("target == 0.8").groupby("method")["sparsity"].mean()
    texts, (width, height) = drawing(found)
    assert width >= 1200
    words = [word for word, _ in texts]
    for title in (
        f"Dense attention of {shape[0] * shape[1]} heads in {shape[0]} layers: where sparsity is safe",
        f"Mass kept by top-k at {100 * at_80['topk']:.0f} % sparsity",
        f"Mass kept by blocks at {100 * at_80['block_topk']:.0f} % sparsity",
        "Top-k sparsity that keeps 95 % of mass",
        "Entropy of dense attention",
        "Mean distance attended",
        "Recommended top-k sparsity",
        "Mass against sparsity, top-k",
        "Mass against sparsity, blocks",
    ):
        assert words.count(title) == 1, title
    for label, panels in {
        "head": 6,
        "layer": 6,
        "nats": 1,
        "tokens": 1,
        "kept mass (% of dense mass)": 2,
    }.items():
        assert words.count(label) == panels, label
    for word, box in texts:
        assert min(box.x0, box.y0) >= 0, word
        assert box.x1 <= width, word
        assert box.y1 <= height, word
    for (one, first), (other, second) in combinations(texts, 2):
        assert not first.overlaps(second), (one, other)


def test_the_marks_say_what_the_budgets_keep(drawing):
    found = made_up(2, 4)
    budgets = found.recommend(mass=0.9, method="block_topk")
    words = [word for word, _ in drawing(found, budgets)[0]]
    for seen in (budgets.expected, budgets.expected["uniform"]):
        assert f"{100 * seen['mass']:.1f} % of mass at {100 * seen['sparsity']:.1f} % sparsity" in words
    assert "Recommended blocks sparsity" in words


@pytest.mark.parametrize(
    ("cross", "empty"), [pytest.param((1,), 0, marks=pytest.mark.slow), ((0, 1), 3)], ids=str
)
def test_what_cross_attention_does_not_have_is_grey_or_said(drawing, cross, empty):
    words = [word for word, _ in drawing(made_up(2, 4, cross=cross))[0]]
    assert words.count("only in self-attention") == empty
    assert sum(word.endswith("(grey: does not apply)") for word in words) == 1
