"""Single queries pick the blocks of the definition, in Triton. Without a GPU, its interpreter runs the kernels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from crisp_attention import BlockTopK
from crisp_attention.kernels.triton_choices.counts import counts_of
from crisp_attention.methods.rows import Rows
from tests.cases import normal

triton = pytest.importorskip("triton", reason="triton is not installed; it is for Linux only")
tl = pytest.importorskip("triton.language")
picking = pytest.importorskip("crisp_attention.kernels.triton_choices.picking")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cuda,
    # numpy's, of the interpreter: inf - inf
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch) -> None:
    """The interpreter takes its time for each tile; a GPU is given those it will have."""
    if DEVICE == "cpu":
        monkeypatch.setattr(picking, "PRODUCTS", 2**14)


@dataclass(frozen=True)
class Size:
    """Of the tensors."""

    queries: int
    keys: int
    heads: int = 4
    groups: int = 2
    width: int = 16


def eighths(*shape: int, seed: int) -> Tensor:
    """Numbers whose products and means float32 holds exactly, so that ties are ties however they are added up."""
    return (8 * normal(*shape, seed=seed)).round() / 8


def rows_of(size: Size, span=None, causal=True, first_query=0, dtype=torch.float32) -> Rows:
    query = eighths(2, size.heads, size.queries, size.width, seed=1)
    key = eighths(2, size.groups, size.keys, size.width, seed=2)
    return Rows(
        *(each.to(DEVICE, dtype) for each in (query, key)),
        scale=0.25,
        causal=causal,
        first_query=first_query,
        span=None if span is None else torch.tensor(span, device=DEVICE),
    )


def picked(layout: BlockTopK, rows: Rows) -> Tensor:
    graph = layout.blocks(rows)
    assert graph is not None
    return picking.picked(
        rows.query, rows.key, graph.choice, layout.block_size, rows.scale, rows.causal, rows.first_query, rows.span
    )  # fmt: skip


def defined(layout: BlockTopK, rows: Rows) -> Tensor:
    """The blocks (B, H, L, n) with a key that the layout shows; none for padded queries."""
    visible, keys = layout.visible(rows), rows.key.shape[2]
    block = layout.block_of(rows.valid)
    found = [(visible & (block == number)).any(dim=-1) for number in range(-(-keys // layout.block_size))]
    found = torch.stack(found, dim=-1).expand(*rows.query.shape[:3], -1)
    queries = rows.query.shape[2]
    if rows.span is None or queries == 1:
        return found
    place = torch.arange(queries, device=DEVICE) + rows.first_query
    real = (place >= rows.span[:, :1]) & (place < rows.span[:, 1:])
    return found & real[:, None, :, None]


def check(layout: BlockTopK, rows: Rows) -> Tensor:
    found = picked(layout, rows)
    assert found.dtype == torch.uint8
    for dtype in (torch.float64, torch.float32):
        wanted = defined(layout, replace(rows, query=rows.query.to(dtype), key=rows.key.to(dtype)))
        assert found.equal(wanted.to(torch.uint8)), (layout, dtype)
    return found


@pytest.mark.parametrize(("size", "sparsity"), [(16, 0.0), (16, 0.7), (16, 0.99), (24, 0.3), (64, 0.5)])
def test_sinks_and_local_blocks_are_always_picked(size: int, sparsity: float) -> None:
    rows = rows_of(Size(200, 200) if size == 64 else Size(110, 110))
    for sinks, local in product((0, 1, 2), repeat=2):
        found = check(BlockTopK(sparsity, size, sinks, local), rows)
        assert 0 < found.sum() < found.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width"), [(1, 1, 64), (3, 3, 20), (6, 2, 128)])
def test_heads(dtype: torch.dtype, heads: int, groups: int, width: int) -> None:
    check(BlockTopK(0.6, 16), rows_of(Size(100, 100, heads, groups, width), dtype=dtype))


@pytest.mark.parametrize(
    ("queries", "keys", "first_query"), [(20, 77, 57), (20, 77, 30), (77, 77, 0), (2, 16, 14), (9, 300, 291)]
)
def test_later_queries(queries: int, keys: int, first_query: int) -> None:
    check(BlockTopK(0.5, 16, local_blocks=2), rows_of(Size(queries, keys), first_query=first_query))


@pytest.mark.parametrize(
    "span", [((70, 130), (0, 61)), ((40, 57), (7, 7)), ((-3, 200), (129, 130)), ((9, 2), (1, 130))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_blocks_are_counted_from_the_first_valid_key(span, dtype: torch.dtype) -> None:
    rows = rows_of(Size(130, 130), span)
    rows = replace(rows, span=rows.span.to(dtype))
    for sinks, local in ((0, 0), (1, 2)):
        check(BlockTopK(0.7, 16, sinks, local), rows)


@pytest.mark.parametrize(
    "span", [None, ((0, 200), (55, 130)), ((16, 48), (0, 0)), ((3, 30), (100, 199))], ids=str
)
@pytest.mark.parametrize(("causal", "first_query"), [(False, 0), (True, 0), (True, 120), (True, 199)])
def test_decoding(span, causal: bool, first_query: int) -> None:
    rows = rows_of(Size(1, 200), span, causal, first_query)
    for sinks, local in ((0, 0), (1, 2), (2, 1)):
        check(BlockTopK(0.6, 16, sinks, local), rows)


@pytest.mark.parametrize("size", [16, 64])
def test_the_lower_of_equal_blocks(size: int) -> None:
    rows = rows_of(Size(5 * size, 5 * size))
    few = replace(rows, query=rows.query.clamp(0, 1).round(), key=rows.key.clamp(0, 1).round())
    same = replace(rows, key=torch.ones_like(rows.key))
    for sinks in (0, 2):
        check(BlockTopK(0.5, size, sinks), few)
        found = check(BlockTopK(0.5, size, sinks), same)
        assert (found[..., -1, :] == torch.tensor([1, 1, 0, 0, 1], device=DEVICE)).all()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_rows_with_a_number_that_is_not_finite_pick_all_their_blocks(number: float) -> None:
    layout = BlockTopK(0.7, 16)
    for token, span in (
        (0, None),
        (37, None),
        (47, ((3, 90), (0, 100))),
        (99, None),
        (99, ((0, 99), (20, 60))),
    ):
        rows = rows_of(Size(100, 100), span)
        rows.key[1, 0, token, 3] = number
        found = check(layout, rows)
        clean = picked(layout, rows_of(Size(100, 100), span))
        assert found[:, :, :token].equal(clean[:, :, :token])
        assert found[0].equal(clean[0])
    rows = rows_of(Size(100, 100))
    rows.query[0, 2, 50, 1] = number
    found = check(layout, rows)
    assert found[0, 2, 50].tolist() == [1, 1, 1, 1, 0, 0, 0]
    for causal, first_query in ((False, 0), (True, 60)):
        rows = rows_of(Size(1, 100), None, causal, first_query)
        rows.key[0, 1, 61] = number
        assert check(layout, rows)[0, 3].sum() == (2 if causal else 7)


def test_what_is_not_valid_is_not_read() -> None:
    rows, layout = rows_of(Size(100, 100), ((10, 75), (0, 40))), BlockTopK(0.7, 16)
    clean = check(layout, rows)
    for example, (first, end) in enumerate(rows.span.tolist()):
        rows.key[example, :, :first] = math.nan
        rows.key[example, :, end:] = math.nan
        rows.query[example, :, :first] = math.nan
        rows.query[example, :, end:] = math.nan
    assert picked(layout, rows).equal(clean)


def test_views() -> None:
    rows, layout = rows_of(Size(70, 70)), BlockTopK(0.6, 16)
    wanted = check(layout, rows)
    query, key = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (rows.query, rows.key))
    columns = replace(rows, query=rows.query.mT.contiguous().mT, key=rows.key.mT.contiguous().mT)
    for other in (replace(rows, query=query, key=key), columns):
        assert picked(layout, other).equal(wanted)
    one = replace(rows, key=rows.key[:, :1].expand(-1, 2, -1, -1))
    check(layout, one)


def test_more_blocks_than_a_tile_has_products(monkeypatch) -> None:
    keys = 1100
    if DEVICE == "cpu":
        monkeypatch.setattr(picking, "PRODUCTS", 32)
        keys = 50
    check(BlockTopK(0.8, 1, 3, 5), rows_of(Size(3, keys, heads=1, groups=1), first_query=keys - 3))


def test_any_scale() -> None:
    for scale in (0.0, -0.5, 2.0**-20):
        check(BlockTopK(0.6, 16), replace(rows_of(Size(70, 70)), scale=scale))


def test_a_first_call_in_inference_mode() -> None:
    rows, layout = rows_of(Size(33, 33)), BlockTopK(0.123, 16)
    with torch.inference_mode():
        picked(layout, rows)
    assert not counts_of(0.123, 1, 3, rows.query.device).is_inference()


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing to wait for without a GPU")
def test_it_does_not_wait_for_the_device() -> None:
    rows, layout = rows_of(Size(100, 100), ((10, 75), (0, 40))), BlockTopK(0.7, 16)
    picked(layout, rows)
    counts_of.cache_clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        picked(layout, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


largest = picking.largest


@triton.jit
def of_one_row(values, there, out, count, N: tl.constexpr):  # noqa: N803
    """`largest` of a row by itself, whose count is one number."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    best = largest(tl.load(values + at), tl.load(there + at) != 0, count)
    tl.store(out + at, best.to(tl.uint8))


@pytest.mark.parametrize("count", [-1, 0, 1, 5, 31, 32, 40])
def test_the_largest_of_any_numbers(count: int) -> None:
    special = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        math.inf,
        -math.inf,
        3.4028235e38,
        -3.4028235e38,
        1.0,
        1.0000001,
        -1.0,
    ]
    values = normal(6, 32, seed=4, dtype=torch.float32)
    values[1, ::2] = values[1, 1]
    values[2] = 0.0
    values[2, ::3] = -0.0
    values[3] = torch.tensor(special)[torch.arange(32) * 7 % len(special)]
    values[4] = values[4].abs() * 1e-40
    there = normal(6, 32, seed=5) > -0.5
    there[0] = True
    there[5] = False
    out = torch.full((6, 32), 7, dtype=torch.uint8, device=DEVICE)
    of_one_row[(6,)](values.to(DEVICE), there.to(torch.uint8).to(DEVICE), out, count, N=32, num_warps=1)
    for row, own, found in zip(values.tolist(), there.tolist(), out.tolist(), strict=True):
        order = sorted((-number, j) for j, number in enumerate(row) if own[j])
        best = [j for _, j in order[: max(count, 0)]]
        assert found == [int(j in best) for j in range(32)]
