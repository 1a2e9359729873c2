import json

import pytest
from hypothesis import given, settings

from crisp_attention import BlockTopK, Dense, Entmax, Full, Method, RandomK, TopK, TopP, Window
from crisp_attention.methods.method import as_method
from tests.strategies import METHODS


@given(METHODS)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_method_survives_json(method: Method) -> None:
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_a_dictionary_saved_before_an_option_existed_is_still_read() -> None:
    saved = {
        "layout": {"name": "window", "width": 9},
        "rule": {"name": "topk", "sparsity": 0.5, "min_keep": 2},
    }
    assert Method.from_dict(saved) == Method(Window(9), TopK(0.5, 2))


def test_the_dictionary_is_the_one_that_saved_models_hold() -> None:
    assert Method(Window(9, 1), TopK(0.5)).to_dict() == {
        "layout": {"name": "window", "width": 9, "global_tokens": 1, "dilation": 1},
        "rule": {"name": "topk", "sparsity": 0.5, "min_keep": 1, "keep": None},
    }


GOOD = {"layout": {"name": "full"}, "rule": {"name": "dense"}}
BAD = [
    (None, r"exactly the keys 'layout' and 'rule', .*got None"),
    ({"rule": {"name": "dense"}}, r"exactly the keys 'layout' and 'rule', .*got \{'rule'"),
    (GOOD | {"extra": 1}, r"exactly the keys 'layout' and 'rule', .*got .*'extra'"),
    (GOOD | {"rule": "dense"}, r"expected a dictionary with a 'name', got 'dense'"),
    (GOOD | {"rule": {"sparsity": 0.5}}, r"expected a dictionary with a 'name', got \{'sparsity'"),
    (GOOD | {"rule": {"name": "window"}}, r"unknown name 'window'; the known names are dense, .*topk"),
    (
        GOOD | {"layout": {"name": ["full"]}},
        r"unknown name \['full'\]; the known names are (?=.*full).*window",
    ),
    (GOOD | {"rule": {"name": "topk", "p": 1}}, r"'topk' has no option p; it has sparsity, min_keep, keep"),
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
    with pytest.raises(TypeError, match=r"layout must be one of (?=.*full).*window.*, got TopK"):
        Method(TopK())
    with pytest.raises(TypeError, match=r"rule must be one of .*dense, .*topk, .*topp.*, got Window"):
        Method(rule=Window(3))


def test_with_sparsity_changes_the_sparsity_only() -> None:
    method = Method(Window(9), TopK(0.5, min_keep=3))
    assert method.with_sparsity(0.7) == Method(Window(9), TopK(0.7, min_keep=3))
    assert method.sparsity == 0.5
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1\.0"):
        method.with_sparsity(1.0)


def test_a_method_without_a_sparsity_says_so() -> None:
    assert Method(Window(9)).sparsity is None
    with pytest.raises(ValueError, match="method 'window' has no single sparsity to set"):
        Method(Window(9)).with_sparsity(0.5)


def test_a_sparsity_of_the_layout_is_that_of_the_method_and_two_are_none() -> None:
    method = Method(BlockTopK(0.5, block_size=8), Entmax())
    assert method.sparsity == 0.5
    assert method.with_sparsity(0.7) == Method(BlockTopK(0.7, block_size=8), Entmax())
    assert Method(BlockTopK(0.5), TopK(0.5)).sparsity is None
    with pytest.raises(ValueError, match="has no single sparsity to set"):
        Method(BlockTopK(0.5), TopK(0.5)).with_sparsity(0.7)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (Method(), "dense"),
        (Method(rule=TopP(0.9)), "topp"),
        (Method(Window(3)), "window"),
        (Method(BlockTopK(), Entmax()), "block_topk+entmax"),
    ],
)
def test_the_name_leaves_out_what_goes_without_saying(method: Method, name: str) -> None:
    assert method.name == name


def test_only_layouts_of_blocks_have_a_block_size() -> None:
    assert Method(BlockTopK(block_size=32), TopK()).block_size == 32
    assert Method(Window(3)).block_size is None


def test_methods_that_need_positions_are_known() -> None:
    assert not Method(rule=TopP(0.9)).uses_positions
    assert Method(BlockTopK()).uses_positions
    assert not Method(rule=TopK()).uses_positions
    assert Method(Window(3), TopK()).uses_positions
    assert Method(rule=RandomK()).uses_positions
