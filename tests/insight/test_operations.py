"""Operations of attention: the paper's numbers, a count by hand, and whole models."""

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import BlockTopK, Linear, Method, Operations, SparseLinear, TopK, TopP
from tests.models.tiny import BATCH, distilbert, llama

WAN = {"tokens": 32760, "heads": 96, "width": 128}  # 12 heads of 8 times 12 layers, as in SLA's table 1


def test_the_numbers_of_the_paper() -> None:
    dense = Operations.of(crisp.Dense(), **WAN)
    assert dense.total == dense.dense == pytest.approx(52.75e12, rel=1e-4)
    for critical, theirs in ((0.05, 2.74e12), (0.10, 5.38e12), (0.20, 10.65e12)):
        ours = Operations.of(SparseLinear(critical), **WAN)
        assert critical * ours.dense == pytest.approx(theirs - 0.10e12, rel=0.01)
        blocks = -(-32760 // 64)
        # the share is rounded up to whole blocks
        assert 0 <= ours.scores + ours.values - critical * ours.dense < ours.dense / blocks
        assert ours.linear + ours.projection == pytest.approx(0.31e12, rel=0.01)
        assert ours.linear / 2 == pytest.approx(0.10e12, rel=0.04)  # the paper's 0.10


def test_what_is_printed_explains_the_difference_from_the_paper() -> None:
    text = repr(Operations.of(SparseLinear(0.05), **WAN))
    assert "52.75" in text
    assert "0.21        0.10" in text
    assert "SLA's paper counts one of them, 0.10." in text
    assert "SLA" not in repr(Operations.of(TopK(0.5), **WAN))


@pytest.mark.parametrize(
    ("method", "scores", "values"),
    [
        (TopK(0.75), 1.0, 0.25),
        (BlockTopK(0.75, block_size=4, local_blocks=0), 0.25, 0.25),
        (BlockTopK(0.75, block_size=4, local_blocks=2), 0.625, 0.625),
        (Method(BlockTopK(0.5, block_size=4, local_blocks=0), TopK(0.5)), 0.5, 0.25),
    ],
    ids=str,
)
def test_rules_look_at_all_that_layouts_show(method, scores: float, values: float) -> None:
    counted = Operations.of(method, tokens=16, heads=2, width=8)
    half = 2 * 16 * 16 * 2 * 8
    assert (counted.scores, counted.values, counted.dense) == (scores * half, values * half, 2 * half)


@pytest.mark.parametrize(
    ("feature_map", "combine", "linear", "projection"),
    [
        ("softmax", "project", 2 * 16 * 8 * 8 * 2, 2 * 16 * 8 * 8),
        ("elu", "sum", 2 * 16 * 8 * 8 * 2, 0),
        ("hedgehog", "alpha", 2 * 16 * 16 * 8 * 2, 2 * 2 * 16 * 8 * 8),
    ],
)
def test_the_linear_part(feature_map: str, combine: str, linear: int, projection: int) -> None:
    counted = Operations.of(
        SparseLinear(0.25, 0.0, 4, feature_map, combine=combine), tokens=16, heads=3, width=8
    )
    assert (counted.linear, counted.projection) == (3 * linear, 3 * projection)


def test_only_what_is_used_is_counted() -> None:
    alone = Operations.of(SparseLinear(0.25, 0.0, 4, combine="alone"), tokens=16, heads=3, width=8)
    assert (alone.scores, alone.values, alone.linear) == (0, 0, 3 * 2 * 16 * 8 * 8 * 2)
    one_block = Operations.of(SparseLinear(0.25, 0.0, 16), tokens=16, heads=3, width=8)
    assert (one_block.total, one_block.linear) == (one_block.dense, 0)
    learned = Operations.of(SparseLinear(0.25, 0.0, 4, "hedgehog"), tokens=16, heads=3, width=8)
    assert all("paper" not in repr(each) for each in (alone, one_block, learned))


def test_of_models_as_well() -> None:
    def count(method: Method, model: torch.nn.Module, **batch: torch.Tensor) -> Operations:
        with torch.no_grad(), crisp.counting(crisp.sparsify(model, method)) as counted:
            model(**batch)
        return counted.total

    alone = count(SparseLinear(0.25, 0.0, 2, combine="alone"), distilbert(), **BATCH)
    assert (alone.scores, alone.values) == (0, 0)
    assert alone.linear > 0
    one_block = count(SparseLinear(0.25, 0.0, 64), distilbert(), **BATCH)
    assert (one_block.total, one_block.linear) == (one_block.dense, 0)


def test_a_decoder_computes_the_linear_part_by_pairs() -> None:
    model = crisp.sparsify(llama(), SparseLinear(0.25, 0.0, 2))
    tokens = {"input_ids": torch.arange(12)[None]}
    with torch.no_grad(), crisp.counting(model) as counted, crisp.measuring(model) as measured:
        model(**tokens)
    table = measured.table()
    pairs = (table.branch * table.valid_pairs).groupby(table.layer).sum()
    width = model.config.head_dim
    assert counted.table().linear.tolist() == pytest.approx([4 * width * each for each in pairs])


def test_what_is_not_known_beforehand_is_refused_with_the_way_to_count_it() -> None:
    for method in (TopP(0.5), crisp.Window(5)):
        with pytest.raises(ValueError, match=r"not known beforehand: use crisp\.counting\(model\)"):
            Operations.of(method, tokens=16, heads=2, width=8)
    with pytest.raises(ValueError, match="tokens must be a whole number of at least 1, got 0"):
        Operations.of(crisp.Dense(), tokens=0, heads=2, width=8)


@pytest.mark.parametrize("method", [SparseLinear(0.25, 0.25, 2), TopK(0.5), crisp.Window(3)])
def test_a_model_is_counted_layer_by_layer(method) -> None:
    model = crisp.sparsify(distilbert(), method)
    with crisp.counting(model) as counted, crisp.measuring(model) as measured:
        model(**BATCH)
        model(**BATCH)
    table, pairs = counted.table(), measured.table().groupby("layer")
    width = model.config.dim // model.config.n_heads
    assert table.dense.tolist() == (4 * width * pairs.valid_pairs.sum()).tolist()
    kept = (pairs.apply(lambda layer: (layer.keys_per_row * layer.rows).sum())).tolist()
    assert table["values"].tolist() == pytest.approx([2 * width * each for each in kept])
    assert counted.total.total == table.total.sum()
    tokens = 2 * int(BATCH["attention_mask"].sum()) * model.config.n_heads
    branch = method.branch if isinstance(method, Method) else None
    wanted = 4 * tokens * width**2 if isinstance(branch, Linear) else 0
    assert table.linear.tolist() == [wanted] * model.config.n_layers
    assert "Operations of 4 attention layers, in 1e3" in repr(counted)
    assert "<table>" in counted._repr_html_()


def test_nothing_was_counted() -> None:
    with crisp.counting(distilbert()) as counted:
        pass
    assert repr(counted) == "OperationCount: nothing was counted yet"
    assert counted.total.total == 0
