"""Which head of which layer gets which method, and that it survives everything."""

import json

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, Method, PerHead, RandomK, TopK, Window
from crisp_attention.methods.method import as_method
from tests.models.tiny import bart, distilbert, llama, logits, settings_in, sparsity_of

HALF, MOST, WINDOW = Method(rule=TopK(0.5)), Method(rule=TopK(0.9)), Method(Window(3))
IDS = torch.arange(5, 21)[None]


def methods(model) -> list:
    return [settings.method for _, settings in settings_in(model)]


def measured(model, **batch):
    with crisp.measuring(model) as seen, torch.no_grad():
        model(**batch)
    return seen.table()


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ({"0-1": MOST, "*": HALF}, (MOST, MOST, HALF, HALF)),
        ({"*": HALF, "0-1": MOST}, (MOST, MOST, HALF, HALF)),
        ({0: MOST, "3": TopK(0.5)}, (MOST, Method(), Method(), HALF)),
        ({"[02]": MOST, "*": HALF, 2: WINDOW}, (MOST, HALF, WINDOW, HALF)),
        ({"1-2": HALF, "2-3": MOST}, (Method(), HALF, MOST, MOST)),
        ({"2-99": HALF}, (Method(), Method(), HALF, HALF)),
    ],
)
def test_heads_are_chosen_by_index_range_or_pattern_and_others_are_dense(heads, expected) -> None:
    assert methods(crisp.sparsify(llama(), heads=heads)) == [PerHead(expected)] * 2


def test_heads_of_some_layers_and_another_method_for_the_rest() -> None:
    model = crisp.sparsify(llama(), layers={"0": {"0": MOST, "*": HALF}, "*": WINDOW})
    assert methods(model) == [PerHead((MOST, HALF, HALF, HALF)), WINDOW]
    model = crisp.sparsify(llama(), heads={"0": MOST}, layers=[1])
    assert methods(model) == [None, PerHead((MOST, Method(), Method(), Method()))]


def test_equal_heads_are_a_method_of_the_layer() -> None:
    assert methods(crisp.sparsify(llama(), heads={"0-1": HALF, "2-3": TopK(0.5)})) == [HALF] * 2


def test_each_head_does_what_it_does_when_all_have_its_method() -> None:
    rules = (TopK(0.9), RandomK(0.5), Window(3), BlockTopK(0.5, block_size=4))
    table = measured(crisp.sparsify(llama(), PerHead(tuple(map(as_method, rules)))), input_ids=IDS)
    assert table["method"].tolist() == ["topk", "random", "window", "block_topk"] * 2
    for head, rule in enumerate(rules):
        alone = measured(crisp.sparsify(llama(), rule, layers=[0]), input_ids=IDS)
        columns = ["head", "sparsity", "kept_mass", "entropy", "valid_pairs", "rows"]
        both = [t[(t["layer"] == 0) & (t["head"] == head)][columns].to_numpy() for t in (table, alone)]
        assert both[0] == pytest.approx(both[1], rel=1e-6)


def test_saved_heads_come_back(tmp_path) -> None:
    model = crisp.sparsify(distilbert(), layers={"0": {"0": MOST, "1": RandomK(0.5)}, "2": WINDOW})
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path)
    assert methods(loaded) == methods(model)
    assert logits(loaded).equal(logits(model))
    assert logits(crisp.densify(loaded)).equal(logits(distilbert()))


@pytest.mark.parametrize("count", [2, 5])
def test_as_many_saved_methods_as_the_model_has_heads(count, tmp_path) -> None:
    crisp.sparsify(llama(), heads={"0": TopK(0.5), "1": TopK(0.7)}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for layer in config["crisp_attention"]["layers"].values():
        layer["heads"] = (layer["heads"] * 2)[:count]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"has 4 heads, the method is for {count}"):
        crisp.load(tmp_path)


def test_one_sparsity_is_set_for_heads_that_share_one() -> None:
    model = crisp.sparsify(
        distilbert(), layers={"0": {"0": HALF, "1": RandomK(0.5)}, "1": {"0": Method(), "1": WINDOW}}
    )
    assert sparsity_of(model) == {"distilbert.transformer.layer.0.attention": 0.5}
    crisp.set_sparsity(model, 0.25)
    assert methods(model) == [
        PerHead((Method(rule=TopK(0.25)), Method(rule=RandomK(0.25)))),
        PerHead((Method(), WINDOW)),
        None,
        None,
    ]
    saved = model.config.crisp_attention["layers"]["distilbert.transformer.layer.0.attention"]["heads"]
    assert [head["rule"]["sparsity"] for head in saved] == [0.25, 0.25]


def test_heads_with_sparsities_of_their_own_have_none_to_set() -> None:
    with pytest.raises(ValueError, match="have sparsities of their own, not one to set"):
        crisp.set_sparsity(crisp.sparsify(distilbert(), heads={"0": HALF, "1": MOST}), 0.3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"heads": {"2": HALF}},
            ValueError,
            r"no head matched '2': layer 0 \(distilbert.*\) has the heads 0-1",
        ),
        ({"heads": {"2-1": HALF}}, ValueError, r"no head matched '2-1'"),
        ({"heads": {"first": HALF}}, ValueError, r"no head matched 'first'"),
        ({"heads": {}}, ValueError, r"heads is empty"),
        ({"layers": {"*": {}}}, ValueError, r"heads is empty"),
        ({"heads": {True: HALF}}, TypeError, r"a head key must be an index or a name pattern, got True"),
        ({"heads": {0: 0.5}}, TypeError, r"expected a method .*, got 0\.5"),
        ({"heads": {0: PerHead((HALF, HALF))}}, TypeError, r"expected a method .*, got PerHead"),
        ({"heads": [HALF, MOST]}, TypeError, r"expected a method .*, got \[Method"),
        ({"heads": {0: HALF}, "method": HALF}, TypeError, r"give either heads=\{key: method\}, or a method"),
        ({"heads": {0: HALF}, "layers": {"*": HALF}}, TypeError, r"give either heads=\{key: method\}"),
        ({"method": PerHead((HALF, MOST, HALF))}, ValueError, r"layer 0 .* has 2 heads, the method is for 3"),
    ],
)
def test_heads_that_are_not_there_are_refused_and_nothing_changes(arguments, error, message) -> None:
    model = crisp.sparsify(distilbert(), Dense())
    before = model.config.to_dict()
    with pytest.raises(error, match=message):
        crisp.sparsify(model, **arguments)
    assert model.config.to_dict() == before


def test_a_head_that_needs_positions_is_refused_in_cross_attention() -> None:
    with pytest.raises(ValueError, match="cross-attention does not have"):
        crisp.sparsify(bart(), heads={"0": HALF, "1": Window(3)}, attention="cross")
    assert len(methods(crisp.sparsify(bart(), heads={"0": HALF, "1": Entmax()}, attention="cross"))) == 6


def test_one_sparsity_for_all_is_not_set_past_heads_that_have_their_own() -> None:
    model = crisp.sparsify(distilbert(), layers={0: {0: HALF, "*": MOST}, 1: HALF})
    for ask in (lambda: crisp.set_sparsity(model, 0.7), lambda: sparsity_of(model)):
        with pytest.raises(ValueError, match=r"the heads of .*layer\.0.* have sparsities of their own"):
            ask()
