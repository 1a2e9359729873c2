"""A study's configurations: their names, and which random control belongs to which."""

from pathlib import Path

import pytest

from crisp_attention.studies.study import Configuration, Study


def study(*methods):
    configurations = tuple(Configuration(method, 1e-4, 3) for method in ("dense", *methods))
    return Study(Path("unused"), "name", [], {}, configurations, (0, 1), "", {})


@pytest.mark.parametrize(
    ("method", "folder", "label", "sparsity"),
    [
        ("dense", "dense", "dense", 0.0),
        ("topk:sparsity=0.8", "topk-sparsity-0.8", "topk 80 %", 0.8),
        ("topk:sparsity=0.125", "topk-sparsity-0.125", "topk 12.5 %", 0.125),
        ("topk:sparsity=0.8:min_keep=4", "topk-sparsity-0.8-min_keep-4", "topk:sparsity=0.8:min_keep=4", 0.8),
        ("nofm:n=2:m=4", "nofm-n-2-m-4", "nofm:n=2:m=4", None),
        (
            "window:width=9+random:sparsity=0.5",
            "window-width-9-random-sparsity-0.5",
            "window:width=9+random:sparsity=0.5",
            0.5,
        ),
    ],
)
def test_names(method, folder, label, sparsity):
    found = Configuration(method, 1e-4, 3)
    assert (found.id, found.label, found.sparsity) == (folder, label, sparsity)


def test_the_control_keeps_as_many_keys_of_what_the_layout_shows():
    methods = (
        "topk:sparsity=0.8",
        "topk:sparsity=0.5",
        "block_topk:sparsity=0.8:block_size=4",
        "entmax:alpha=1.5",
        "random:keep=16",
        "random:sparsity=0.8",
        "window:width=9+topk:sparsity=0.8",
        "window:width=5+random:sparsity=0.8",
        "window:width=9+random:sparsity=0.8",
    )
    found = study(*methods)
    control = {each.method: found.control(each) for each in found.configurations}
    assert {key: each.method for key, each in control.items() if each} == {
        "topk:sparsity=0.8": "random:sparsity=0.8",
        "block_topk:sparsity=0.8:block_size=4": "random:sparsity=0.8",
        "window:width=9+topk:sparsity=0.8": "window:width=9+random:sparsity=0.8",
    }
