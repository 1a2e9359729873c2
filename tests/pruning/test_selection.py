"""Which weights are kept: the contracts of section 4.9 of the specification, for every type of layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention.pruning.matrices import Matrix
from crisp_attention.pruning.patterns import Pattern
from crisp_attention.pruning.selection import check_target, range_of, select
from tests.pruning.layers import KINDS

every_kind = pytest.mark.parametrize("kind", KINDS)


def scores_of(matrices: list[Matrix], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {each.name: torch.rand(each.shape, generator=generator) for each in matrices}


def tiles(mask: Tensor, size: int) -> Tensor:
    """How many weights of each block are kept, (rows of blocks, columns of blocks)."""
    return mask.unflatten(1, (-1, size)).unflatten(0, (-1, size)).sum(dim=(1, 3))


@given(
    kind=st.sampled_from(list(KINDS)),
    groups=st.sampled_from([None, "1:4", "2:4", "4:8"]),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    columns=st.integers(4, 8).map(lambda n: n // 4 * 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
    normalised=st.sampled_from(["sum", "mean"]),
)
def test_every_row_of_blocks_keeps_as_many_and_every_group_its_share(
    kind, groups, rows, columns, share, seed, normalised
) -> None:
    size, pattern = 8, Pattern.parse(groups, 8)
    matrices = [KINDS[kind](size * n, size * columns, number) for number, n in enumerate(rows)]
    possible = range_of(matrices, pattern)
    target = possible.least + share * (possible.largest - possible.least)
    masks = select(matrices, scores_of(matrices, seed), pattern, target, normalised=normalised)
    total = sum(each.weight.numel() for each in matrices)
    kept = sum(int(mask.sum()) for mask in masks.values())
    for mask in masks.values():
        counts = tiles(mask, size)
        assert set(counts.unique().tolist()) <= {0, int(size * size * pattern.density)}
        assert len((counts > 0).sum(dim=1).unique()) == 1
        assert (counts > 0).sum(dim=1).min() >= 1
        groups_kept = mask.unflatten(1, (-1, pattern.of)).sum(dim=-1)
        assert set(groups_kept.unique().tolist()) <= {0, pattern.kept}
    largest_column = max(rows) * size * size * pattern.density
    assert 0 <= (1 - target) * total - kept + 1e-6 < largest_column + 1e-6


@every_kind
def test_a_dominant_block_survives_wherever_it_is(kind: str) -> None:
    size, pattern = 8, Pattern.parse(None, 8)
    for rows, columns in ((2, 4), (4, 4), (4, 8)):
        (matrix,) = matrices = [KINDS[kind](size * rows, size * columns)]
        for row in range(rows):
            for column in range(columns):
                scores = torch.full(matrix.shape, 0.01)
                scores[size * row : size * (row + 1), size * column : size * (column + 1)] = 1
                mask = select(matrices, {matrix.name: scores}, pattern, 1 - 1 / columns)[matrix.name]
                assert tiles(mask, size)[row, column] == size * size


@every_kind
@pytest.mark.parametrize("groups", [None, "2:4"])
def test_masks_are_nested_and_stay_exact_while_scores_change(kind: str, groups: str | None) -> None:
    pattern = Pattern.parse(groups, 8)
    matrices = [KINDS[kind](8 * rows, 64, number) for number, rows in enumerate((2, 4))]
    before = None
    for step, target in enumerate((0.5, 0.6, 0.7, 0.8)):
        scores = {name: each - 0.5 for name, each in scores_of(matrices, seed=step).items()}
        masks = select(matrices, scores, pattern, target, before)
        for name, mask in masks.items():
            assert before is None or not (mask & ~before[name]).any()
            live = tiles(mask, 8)
            assert set(live.unique().tolist()) <= {0, int(64 * pattern.density)}
        before = masks


@given(
    first=st.tuples(st.sampled_from([None, "1:4", "2:4"]), st.sampled_from([8, 16, None])),
    second=st.tuples(st.sampled_from([None, "1:4", "2:4"]), st.sampled_from([8, 16])),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 100),
)
def test_a_target_counts_what_another_pattern_pruned_before(first, second, shares, seed) -> None:
    matrices = [KINDS["Linear"](16 * rows, 64, number) for number, rows in enumerate((1, 3))]
    total = sum(each.weight.numel() for each in matrices)
    masks = None
    if first == (None, None):
        first = (None, 8)
    for (groups, size), share, number in zip((first, second), shares, range(2), strict=True):
        pattern = Pattern.parse(groups, size)
        possible = range_of(matrices, pattern)
        target = possible.least + share * (possible.largest - possible.least)
        before, masks = masks, select(matrices, scores_of(matrices, seed + number), pattern, target, masks)
    assert before is not None
    left = 0
    for each in matrices:
        live = before[each.name]
        if pattern.has_groups:
            left += int(live.unflatten(1, (-1, pattern.of)).sum(dim=-1).clamp(max=pattern.kept).sum())
        else:
            left += int(live.sum())
    kept = sum(int(mask.sum()) for mask in masks.values())
    column = max(each.shape[0] for each in matrices) * size * pattern.density
    room = (1 - target) * total
    if left <= room:
        assert kept == left  # nothing but the pattern took more
    else:
        assert room - column < kept <= max(room + 1e-6, 2 * column)


def test_without_pruned_blocks_there_are_only_groups() -> None:
    matrices = [KINDS["Linear"](16, 32)]
    scores = scores_of(matrices)
    both = select(matrices, scores, Pattern.parse("2:4", 8), 0.5)
    alone = select(matrices, scores, Pattern.parse("2:4", None), 0.5)
    assert all(both[name].equal(alone[name]) for name in both)


def test_groups_keep_the_largest_by_hand_and_the_first_of_equals() -> None:
    (matrix,) = matrices = [KINDS["Linear"](1, 8)]
    scores = {matrix.name: torch.tensor([[3.0, 1, 2, 0, 5, 5, 5, 5]])}
    mask = select(matrices, scores, Pattern.parse("2:4", None), 0.5)[matrix.name]
    assert mask.tolist() == [[True, False, True, False, True, True, False, False]]


def test_one_threshold_for_all_matrices_of_sums_or_of_means() -> None:
    small, large = matrices = [KINDS["Linear"](8, 32, 0), KINDS["Linear"](32, 32, 1)]
    scores = {small.name: torch.full((8, 32), 2.0), large.name: torch.full((32, 32), 1.0)}
    pattern = Pattern.parse(None, 8)
    target = 1 - (3 * 64 + 2 * 256) / 1280
    for normalised, kept in (("sum", [1, 2]), ("mean", [4, 1])):
        masks = select(matrices, scores, pattern, target, normalised=normalised)
        assert [int((tiles(masks[each.name], 8) > 0).sum(1)[0]) for each in matrices] == kept


@pytest.mark.parametrize(
    ("groups", "size", "target", "message"),
    [
        ("2:4", 8, 0.95, r"got 0\.95; 2:4 in blocks of 8 in this layer gives 0\.5 to 0\.875"),
        ("2:4", 8, 0.3, r"got 0\.3; .* gives 0\.5 to 0\.875"),
        ("2:4", None, 0.6, r"target must be what groups give, got 0\.6; 2:4 in this layer gives 0\.5"),
    ],
)
def test_targets_out_of_reach_name_the_reach(groups, size, target, message) -> None:
    matrices = [KINDS["Linear"](16, 32)]
    with pytest.raises(ValueError, match=message):
        check_target(matrices, Pattern.parse(groups, size), target)


@pytest.mark.parametrize(
    ("groups", "size", "message"),
    [
        ("4:2", 8, "pattern must be N:M with N below M, such as '2:4', or None, got '4:2'"),
        ("two", 8, "pattern must be N:M"),
        ("2:4", 12, "block_size must be one of 8, 16, 32, 64, or None, got 12"),
        ("2:5", 8, "pattern 2:5 does not divide blocks of 8"),
        (None, None, "pattern and block_size are both None"),
    ],
)
def test_what_is_no_pattern(groups, size, message) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern.parse(groups, size)


def test_blocks_may_be_scored_by_what_groups_keep_alone() -> None:
    matrix = KINDS["Linear"](8, 16)
    scores = torch.ones(8, 16)
    scores[:, :8] = torch.tensor([3.0, 3, 0, 0] * 2)  # two large of four: 48 in all, and as much kept
    scores[:, 8:] = 2.0  # all alike: 128 in all, half of it kept
    pattern = Pattern.parse("2:4", 8)
    found = {
        kept: select([matrix], {matrix.name: scores}, pattern, 0.75, score_kept=kept)[matrix.name]
        for kept in (False, True)
    }
    assert found[False][:, 8:].any()
    assert not found[False][:, :8].any()
    assert found[True][:, :8].any()
    assert not found[True][:, 8:].any()
