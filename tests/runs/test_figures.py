"""What the figures say in words."""

import pandas as pd
from matplotlib.figure import Figure

from crisp_attention.runs.evaluation import draw_heads


def test_layers_with_different_numbers_of_heads_have_a_mean(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: drawn.append(figure))
    rows = {"layer": [0, 1, 1], "head": [0, 0, 1], "sparsity": [0.3, 0.6, 0.9], "kept_mass": [1.0, 0.5, 0.0]}
    draw_heads(pd.DataFrame(rows), tmp_path / "heads.png")
    sparsity, mass, _ = drawn[0].axes
    assert sparsity.get_title() == "Achieved sparsity (mean 60.0 %)"
    assert mass.get_title() == "Kept softmax mass (mean 50.0 %)"
    assert sparsity.collections[0].get_array().tolist() == [[30, None], [60, 90]]  # layer 0 has one head
    assert sparsity.get_ylim() == (2, 0)  # and is at the top
