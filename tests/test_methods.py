import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import Dense, Full, Method, RandomK, TopK, Window
from crisp_attention.methods import as_method, parse

SHARE = {"sparsity": st.floats(0, 1, exclude_max=True), "min_keep": st.integers(1, 100)}
RULES = st.just(Dense()) | st.builds(TopK, **SHARE) | st.builds(RandomK, **SHARE)
WINDOWS = st.builds(Window, st.integers(0, 500).map(lambda n: 2 * n + 1), st.integers(0, 64))
METHODS = st.builds(Method, st.just(Full()) | WINDOWS, RULES)


@given(METHODS)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_a_method_survives_json(method: Method) -> None:
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


@given(METHODS)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_parse_reads_the_name_that_a_method_gives_itself(method: Method) -> None:
    data = method.to_dict()
    options = {k: v for part in data.values() for k, v in part.items() if k != "name"}
    assert parse(method.name, **options) == method


def test_the_dictionary_is_the_one_that_saved_models_hold() -> None:
    assert Method(Window(9, 1), TopK(0.5)).to_dict() == {
        "layout": {"name": "window", "width": 9, "global_tokens": 1},
        "rule": {"name": "topk", "sparsity": 0.5, "min_keep": 1},
    }


PARSED = {
    "dense": ({}, Method()),
    "full": ({}, Method()),
    "topk": ({"sparsity": 0.5}, Method(rule=TopK(0.5))),
    "random": ({"min_keep": 2}, Method(rule=RandomK(min_keep=2))),
    "window": ({"width": 9}, Method(layout=Window(9))),
    "window+topk": ({"width": 9, "sparsity": 0.5}, Method(Window(9), TopK(0.5))),
    "topk+window": ({"width": 9}, Method(Window(9), TopK())),
}


@pytest.mark.parametrize(("name", "options", "method"), [(k, *v) for k, v in PARSED.items()], ids=PARSED)
def test_parse(name: str, options: dict, method: Method) -> None:
    assert parse(name, **options) == method


REFUSED = [
    ("topp", {}, r"unknown method 'topp'; the methods are dense, topk, random, full, window"),
    ("", {}, r"unknown method ''"),
    ("window+", {"width": 3}, r"unknown method ''"),
    ("topk+random", {}, r"'topk\+random' names two rules"),
    ("full+window", {"width": 3}, r"'full\+window' names two layouts"),
    ("topk", {"width": 9}, r"'topk' has no option width"),
    ("dense", {"sparsity": 0.5}, r"'dense' has no option sparsity"),
    ("window", {}, r"'window' needs the option width"),
    ("window", {"width": 4}, r"width must be an odd whole number of at least 1, got 4"),
    ("topk", {"sparsity": "much"}, r"'topk': sparsity must be a number in \[0, 1\), got 'much'"),
    ("topk", {"sparsity": 1}, r"sparsity must be in \[0, 1\), got 1"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_parse_refuses(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(name, **options)


GOOD = {"layout": {"name": "full"}, "rule": {"name": "dense"}}
BAD = [
    (None, r"exactly the keys 'layout' and 'rule', got None"),
    ({"rule": {"name": "dense"}}, r"exactly the keys 'layout' and 'rule', got \{'rule'"),
    (GOOD | {"extra": 1}, r"exactly the keys 'layout' and 'rule', got .*'extra'"),
    (GOOD | {"rule": "dense"}, r"expected a dictionary with a 'name', got 'dense'"),
    (GOOD | {"rule": {"sparsity": 0.5}}, r"expected a dictionary with a 'name', got \{'sparsity'"),
    (GOOD | {"rule": {"name": "window"}}, r"unknown name 'window'; known are dense, topk, random"),
    (GOOD | {"layout": {"name": ["full"]}}, r"unknown name \['full'\]; known are full, window"),
    (GOOD | {"rule": {"name": "topk", "p": 1}}, r"'topk' has no option p; it has sparsity, min_keep"),
    (GOOD | {"layout": {"name": "window"}}, r"'window' needs the option width"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_from_dict_refuses_what_it_does_not_know(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method.from_dict(data)


def test_a_rule_or_a_layout_alone_stands_for_a_method() -> None:
    assert as_method(TopK(0.5)) == Method(Full(), TopK(0.5))
    assert as_method(Window(3)) == Method(Window(3), Dense())
    assert as_method(Method(Window(3), TopK())) == Method(Window(3), TopK())


@pytest.mark.parametrize("thing", ["topk", None, TopK, 0.8])
def test_nothing_else_stands_for_a_method(thing: object) -> None:
    with pytest.raises(TypeError, match=r"expected a method such as crisp\.TopK\(sparsity=0\.8\), got "):
        as_method(thing)


def test_parts_in_the_wrong_place_are_refused() -> None:
    with pytest.raises(TypeError, match=r"layout must be one of full, window, got TopK"):
        Method(TopK())
    with pytest.raises(TypeError, match=r"rule must be one of dense, topk, random, got Window"):
        Method(rule=Window(3))


def test_with_sparsity_changes_the_sparsity_only() -> None:
    method = Method(Window(9), TopK(0.5, min_keep=3))
    assert method.with_sparsity(0.7) == Method(Window(9), TopK(0.7, min_keep=3))
    assert method.sparsity == 0.5
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1\.0"):
        method.with_sparsity(1.0)


def test_a_method_without_a_sparsity_says_so() -> None:
    assert Method(Window(9)).sparsity is None
    with pytest.raises(ValueError, match=r"method 'window' has no sparsity to set"):
        Method(Window(9)).with_sparsity(0.5)


def test_methods_that_need_positions_are_known() -> None:
    assert not Method(rule=TopK()).uses_positions
    assert Method(Window(3), TopK()).uses_positions
    assert Method(rule=RandomK()).uses_positions
