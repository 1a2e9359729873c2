import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import BlockTopK, Method, PerHead, RandomK, TopK, Window
from crisp_attention.methods.heads import layer_method, per_head
from tests.strategies import METHODS, PER_HEAD

HALF, WINDOW, RANDOM = Method(rule=TopK(0.5)), Method(Window(3)), Method(rule=RandomK(0.5))


@given(METHODS | PER_HEAD)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_the_method_of_a_layer_survives_json(method: Method | PerHead) -> None:
    assert layer_method(json.loads(json.dumps(method.to_dict()))) == method


@given(st.lists(METHODS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_every_head_is_in_the_group_of_its_method(methods: list[Method]) -> None:
    groups = PerHead(tuple(methods)).groups()
    assert [methods[heads[0]] for heads in groups.values()] == list(groups)
    assert sorted(head for heads in groups.values() for head in heads) == list(range(len(methods)))
    assert all(methods[head] == method for method, heads in groups.items() for head in heads)


def test_equal_methods_for_all_heads_are_one_method() -> None:
    assert per_head([HALF, HALF]) == HALF
    assert per_head([HALF, WINDOW]) == PerHead((HALF, WINDOW))


def test_names_and_specs_come_once_in_the_order_of_the_heads() -> None:
    method = PerHead((WINDOW, HALF, WINDOW, Method(rule=TopK(0.7))))
    assert method.name == "window | topk"
    assert method.spec == "window:width=3 | topk:sparsity=0.5 | topk:sparsity=0.7"


def test_a_sparsity_that_all_heads_share_can_be_set() -> None:
    method = PerHead((HALF, RANDOM, HALF))
    assert method.sparsity == 0.5
    set_to = method.with_sparsity(0.7)
    assert set_to == PerHead((Method(rule=TopK(0.7)), Method(rule=RandomK(0.7)), Method(rule=TopK(0.7))))
    assert PerHead((HALF, WINDOW)).sparsity is None
    with pytest.raises(ValueError, match="'window' has no single sparsity"):
        PerHead((HALF, WINDOW)).with_sparsity(0.7)


def test_what_one_head_needs_the_layer_needs() -> None:
    assert not PerHead((HALF, HALF)).uses_positions
    assert PerHead((HALF, WINDOW)).uses_positions
    assert not PerHead((HALF, WINDOW)).uses_seed
    assert PerHead((HALF, RANDOM)).uses_seed


def test_the_block_size_is_that_on_which_all_heads_with_blocks_agree() -> None:
    eight, four = Method(BlockTopK(block_size=8)), Method(BlockTopK(block_size=4))
    assert PerHead((HALF, eight, eight)).block_size == 8
    assert PerHead((eight, four)).block_size is None
    assert PerHead((HALF, WINDOW)).block_size is None


@pytest.mark.parametrize("methods", [(), (TopK(0.5),), (HALF, None), ("topk",)])
def test_anything_but_methods_is_refused(methods: tuple) -> None:
    with pytest.raises(TypeError, match="methods must be a tuple with one Method for each head, got"):
        PerHead(methods)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"heads": []}, r"'heads' must be a list with a method for each head, got \[\]"),
        ({"heads": {"0": {}}}, r"'heads' must be a list .*, got \{'0'"),
        ({"heads": [None]}, r"exactly the keys 'layout' and 'rule', .*got None"),
        ({"heads": [HALF.to_dict()], "more": 1}, r"exactly the keys 'layout' and 'rule', .*got"),
        ([HALF.to_dict()], r"exactly the keys 'layout' and 'rule', .*got"),
    ],
)
def test_damaged_dictionaries_are_refused(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_method(data)
