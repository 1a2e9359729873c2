"""A study's configurations: their names, and which random control belongs to which."""

import pytest

from crisp_attention.methods.spec import parse
from crisp_attention.runs.spec import Data, Recipe
from crisp_attention.studies.attention import as_treatment
from crisp_attention.studies.plan import Configuration, planned


def plan(*methods, **values):
    given = {"seeds": 2, "recipe": Recipe()} | values
    return planned("model", Data(source="data"), [parse(each) for each in methods], **given)


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
    found = Configuration(as_treatment(parse(method)))
    assert (found.id, found.label, found.treatment.sparsity) == (folder, label, sparsity)


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
    found = plan(*methods)
    control = {each.spec: found.control(each) for each in found.configurations}
    assert {key: each.spec for key, each in control.items() if each} == {
        "topk:sparsity=0.8": "random:sparsity=0.8",
        "block_topk:sparsity=0.8:block_size=4": "random:sparsity=0.8",
        "window:width=9+topk:sparsity=0.8": "window:width=9+random:sparsity=0.8",
    }
