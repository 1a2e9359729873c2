"""What the figures say in words."""

import pandas as pd
from matplotlib.axes import Axes

from crisp_attention.runs.figures import draw_heads


def test_layers_with_different_numbers_of_heads_have_a_mean(tmp_path, monkeypatch):
    titles = []
    original = Axes.set
    monkeypatch.setattr(
        Axes, "set", lambda axes, **given: (titles.append(given.get("title")), original(axes, **given))[1]
    )
    rows = {"layer": [0, 1, 1], "head": [0, 0, 1], "sparsity": [0.3, 0.6, 0.9], "kept_mass": [1.0, 0.5, 0.0]}
    draw_heads(pd.DataFrame(rows), tmp_path / "heads.png")
    assert [title for title in titles if title] == [
        "Achieved sparsity (mean 60.0 %)",
        "Kept softmax mass (mean 50.0 %)",
    ]
    assert (tmp_path / "heads.png").is_file()
