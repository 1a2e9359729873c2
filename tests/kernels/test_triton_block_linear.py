"""The Triton kernel of linear layers of blocks. Without a GPU, Triton's interpreter runs it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from crisp_attention.kernels.triton_block_linear import DTYPES, block_linear
from crisp_attention.pruning import BlockLinear
from tests.cases import normal
from tests.pruning.test_compressed import blocks_of

pytest.importorskip("triton.language", reason="triton is not installed; it is for Linux only")
pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(layer: BlockLinear, states: Tensor) -> None:
    """Errors against float64 are at most twice those of the dense layer, or of a sum one after the other."""
    weight, bias = layer.weight, layer.bias
    found = block_linear(states, layer.blocks, layer.index, bias, layer.places, layer.group)
    assert found.dtype == states.dtype
    exact = linear(states.double(), weight.double(), None if bias is None else bias.double())
    errors = [(each.double() - exact).abs() for each in (found, linear(states, weight, bias))]
    assert found.shape == exact.shape
    if found.numel():
        least = torch.finfo(states.dtype).eps * max(
            linear(states.double().abs(), weight.double().abs()).max().item(), 1.0
        )
        assert errors[0].max() <= 2 * max(errors[1].max().item(), least)


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([8, 16, 32, 64]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 4),
    share=st.floats(0, 1),
    count=st.integers(0, 40) | st.sampled_from([64, 65, 128, 150]),
    bias=st.booleans(),
    groups=st.sampled_from([None, (2, 4), (1, 8), (4, 8)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_outputs_are_those_of_the_dense_weight(
    size, rows, columns, share, count, bias, groups, dtype, seed
) -> None:
    own = normal(rows * size, seed=seed) if bias else None
    layer = BlockLinear.of(blocks_of(rows, columns, size, share, seed, groups), own, size)
    layer = layer.to(DEVICE, dtype).requires_grad_(False)
    check(layer, normal(count, columns * size, seed=seed + 1).to(DEVICE, dtype))


def test_rows_of_any_strides() -> None:
    layer = BlockLinear.of(blocks_of(2, 3, 16, 0.5), None, 16).to(DEVICE).requires_grad_(False)
    states = normal(20, 96, dtype=torch.float32).to(DEVICE)
    for each in (states[:, 5:53], states[::3, :48], states[:, ::2], states[:1, :48].expand(20, -1)):
        check(layer, each)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
def test_values_that_are_not_finite_stay_in_what_is_used_of_them() -> None:
    layer = BlockLinear.of(torch.block_diag(*[torch.ones(8, 8)] * 3), None, 8)
    states = torch.ones(4, 24)
    states[1, 3], states[2, 23] = torch.nan, torch.inf
    found = block_linear(states.to(DEVICE), layer.blocks.to(DEVICE), layer.index.to(DEVICE), None).cpu()
    wanted = torch.full((4, 24), 8.0)
    wanted[1, :8], wanted[2, 16:] = torch.nan, torch.inf
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_torch_sees_the_operator() -> None:
    from crisp_attention.kernels.triton_block_linear import operators

    layer = BlockLinear.of(blocks_of(2, 3, 16, 0.5), torch.ones(32), 16).to(DEVICE).requires_grad_(False)
    given_ = (normal(5, 48, dtype=torch.float32).to(DEVICE), layer.blocks, layer.index, layer.bias)
    torch.library.opcheck(
        operators.forward, (*given_, None, 1), test_utils=("test_schema", "test_faketensor")
    )
    compiled = torch.compile(block_linear, backend="aot_eager", fullgraph=True)
    assert compiled(*given_).equal(block_linear(*given_))
