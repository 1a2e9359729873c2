import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crisp_attention as crisp
from crisp_attention import Budgets, Method, PerHead, TopK, Window
from tests.strategies import METHODS, PER_HEAD

NAMES = st.text("layer.012", min_size=1, max_size=12)
SOME = Budgets({"a": Method(rule=TopK(0.5)), "b": PerHead((Method(rule=TopK(0.7)), Method(Window(3))))})


@given(
    st.dictionaries(NAMES, METHODS | PER_HEAD, min_size=1, max_size=4),
    st.dictionaries(NAMES, st.floats(0, 1) | st.text()),
)
@settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the file is written anew each time
)
def test_budgets_come_back_as_they_were_saved(tmp_path, methods: dict, expected: dict) -> None:
    wanted = Budgets(methods, expected)
    wanted.save(tmp_path / "budgets.json")
    assert crisp.budgets(tmp_path / "budgets.json") == wanted
    assert crisp.budgets(str(tmp_path / "budgets.json")) == wanted


def test_the_file_is_the_one_that_others_have_saved(tmp_path) -> None:
    SOME.save(tmp_path / "budgets.json")
    saved = json.loads((tmp_path / "budgets.json").read_text())
    assert set(saved) == {"version", "expected", "layers"}
    assert saved["version"] == 1
    assert saved["layers"]["b"]["heads"][1]["layout"]["name"] == "window"


def dense(**changes: object) -> dict:
    return {"version": 1, "expected": {}, "layers": {"a": Method().to_dict()}} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"cannot read budgets from .*budgets\.json: Expecting value"),
        ('{"version": 1', r"cannot read budgets from .*budgets\.json: "),
        (b"\xff\xfe\x00", r"cannot read budgets from .*budgets\.json: "),
        ([], r"budgets\.json holds no budgets of version 1"),
        ({}, r"budgets\.json holds no budgets of version 1"),
        (dense(version=2), r"budgets\.json holds no budgets of version 1"),
        (dense(layers={}), r"budgets\.json holds no budgets of version 1"),
        (dense(layers=[]), r"budgets\.json holds no budgets of version 1"),
        (dense(expected=[0.5]), r"budgets\.json holds no budgets of version 1"),
        (dense(layers={"a": None}), r"budgets\.json: a method needs exactly the keys .*, got None"),
        (dense(layers={"a": {"heads": []}}), r"budgets\.json: 'heads' must be a list"),
        (
            dense(layers={"a": {"layout": {"name": "full"}, "rule": {"name": "magic"}}}),
            r"budgets\.json: unknown name 'magic'",
        ),
        (
            dense(layers={"a": {"layout": {"name": "full"}, "rule": {"name": "topk", "sparsity": "half"}}}),
            r"budgets\.json: 'topk': sparsity must be a number in \[0, 1\), got 'half'",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content: object, message: str) -> None:
    file = tmp_path / "budgets.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        crisp.budgets(file)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_is_no_file_is_named(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot read budgets from .*{tmp_path.name}"):
        crisp.budgets(tmp_path / name)


def test_budgets_by_hand_take_any_method_and_none_is_refused(tmp_path) -> None:
    Budgets({"a": TopK(0.5)}).save(tmp_path / "b.json")
    assert crisp.budgets(tmp_path / "b.json").methods == {"a": Method(rule=TopK(0.5))}
    with pytest.raises(ValueError, match="budgets need a method for at least one layer, got none"):
        Budgets({})
    with pytest.raises(TypeError, match=r"expected a method such as .*, got 0\.5"):
        Budgets({"a": 0.5})
