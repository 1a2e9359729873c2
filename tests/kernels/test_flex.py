"""On a CPU, FlexAttention runs uncompiled: it reads the mask's function and not the lists of blocks.

Both are tested here, each by itself; that the compiled kernel reads the lists right is torch's own.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from crisp_attention import BlockTopK, Method, TopK
from crisp_attention.kernels import flex, reference
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.methods.blocks import BlockGraph, Blocks
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.rows import Rows
from tests.cases import normal

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
LENGTH, SIZE = 20, 4
LAYOUT = BlockTopK(0.6, SIZE, sink_blocks=1)
CHOOSES = "block choices for single queries (causal and other masks, decoding, cross-attention)"


def a_call(method: BlockTopK | Method | PerHead = LAYOUT, dtype: torch.dtype = torch.float64, **more) -> Call:
    query = normal(3, 4, LENGTH, 8, dtype=dtype)
    key, value = (normal(3, 2, LENGTH, width, seed=width, dtype=dtype) for width in (8, 5))
    method = Method(layout=method) if isinstance(method, BlockTopK) else method
    return Call(query, key, value, method, scale=0.3, **more)


def lacks(call: Call) -> str | None:
    return flex.lacks(with_blocks(call))


def attend(call: Call) -> Tensor:
    return flex.attention(with_blocks(call))


def wanted(call: Call) -> Tensor:
    return reference.attention(call)[0]


def padding(left: list[int], right: list[int]) -> Tensor:
    place = torch.arange(LENGTH)
    return torch.stack([(place >= a) & (place < LENGTH - b) for a, b in zip(left, right, strict=True)])[
        :, None, None
    ]


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.9])
def test_it_is_the_reference(sparsity: float) -> None:
    call = a_call(replace(LAYOUT, sparsity=sparsity))
    assert lacks(call) is None
    torch.testing.assert_close(attend(call), wanted(call), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("layout", [LAYOUT, BlockTopK(0.5, 3, local_blocks=2)], ids=str)
def test_padding_moves_no_block_and_padded_queries_give_zeros(layout: BlockTopK) -> None:
    valid = padding([0, 5, 0], [7, 2, 20])
    call = a_call(layout, valid=valid.expand(-1, 4, LENGTH, -1))
    assert lacks(call) is None
    real = valid.transpose(2, 3)
    torch.testing.assert_close(attend(call), wanted(call).masked_fill(~real, 0), atol=1e-12, rtol=1e-12)


def test_gradients_are_those_of_the_reference(monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    call = a_call(valid=padding([0, 5, 0], [7, 2, 0]))
    found, expected = [], []
    for attention, gradients in ((attend, found), (wanted, expected)):
        states = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
        output = attention(replace(call, query=states[0], key=states[1], value=states[2]))
        output = output.masked_fill(~call.valid.transpose(2, 3), 0)
        output.backward(normal(*output.shape, seed=9))
        gradients.extend(each.grad for each in states)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, LENGTH), st.booleans())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_the_lists_of_blocks_and_the_mask_function_say_the_same(seed, size, length, padded) -> None:
    query, key = normal(2, 2, length, 4, seed=seed), normal(2, 2, length, 4, seed=seed + 1)
    lengths = torch.tensor([length, seed % (length + 1)]) if padded else None
    mask = None if lengths is None else (torch.arange(length) < lengths[:, None])[:, None, None]
    graph = BlockTopK(0.5, size).blocks(Rows(query, key, mask=mask))
    kept, mask = graph.seen, flex.block_mask(graph)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 2, length, length)), indexing="ij")
    pairs = mask.mask_mod(b, h, i, j)
    whole = torch.zeros(2, 2, len(kept[0, 0]) * size, len(kept[0, 0]) * size, dtype=torch.bool)
    whole[..., :length, :length] = pairs
    cells = whole.unflatten(3, (-1, size)).unflatten(2, (-1, size)).transpose(3, 4)
    assert mask.to_dense().bool().equal(kept)
    full = listed_pairs(mask.full_kv_num_blocks, mask.full_kv_indices)
    rows = torch.arange(len(kept[0, 0])) * size + size <= length
    assert not (full & ~kept).any()
    assert cells.flatten(4).all(-1)[full & rows[:, None]].all()  # what is called full has no masked pair
    assert not cells.flatten(4).any(-1)[~kept].any()


def listed_pairs(counts: Tensor, blocks: Tensor) -> Tensor:
    listed = torch.arange(blocks.shape[-1]) < counts[..., None]
    return torch.zeros_like(blocks).scatter_add(-1, blocks.long(), listed.int()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"causal": True}, CHOOSES),
        ({"valid": torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)}, CHOOSES),
        ({"method": Method(LAYOUT, TopK(0.5))}, "the rule topk"),
        ({"method": Method(rule=TopK(0.5))}, "the layout full"),
        ({"method": PerHead((Method(LAYOUT), Method(), Method(), Method()))}, "a method for each head"),
        ({"bias": torch.zeros(1, 1, 1, 1)}, "a bias"),
        ({"query": normal(3, 4, 1, 8)}, CHOOSES),
        ({"query": normal(3, 4, LENGTH, 8).requires_grad_()}, "gradients on CPUs"),
        ({"scale": torch.inf}, "the scale inf"),
    ],
)  # fmt: skip
def test_it_says_what_it_lacks(change: dict, words: str) -> None:
    assert lacks(replace(a_call(), **change)) == words


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")
@pytest.mark.parametrize("length", [16, 32, 127, 128])
@pytest.mark.parametrize("size", [16, 64, 128])
def test_on_gpus_short_sequences_never_take_the_kernel_for_decoding(length: int, size: int) -> None:
    """Which takes the number of queries for a multiple of the tile: private parts of torch, read in 2.13."""
    from torch._inductor.kernel.flex.flex_decoding import _use_flex_decoding
    from torch._inductor.sizevars import SizeVarAllocator
    from torch._inductor.virtualized import V

    _, options = flex._flex_attention("cuda", size)
    assert size % options["fwd_BLOCK_M"] == size % options["fwd_BLOCK_N"] == 0
    blocks = -(-length // size)
    states, kept = (
        SimpleNamespace(get_size=lambda n=n: n) for n in ((2, 4, length, 16), (2, 4, blocks, blocks))
    )
    with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator())):
        assert _use_flex_decoding(states, kept, states, {}, False) == (length < 128)
        assert not _use_flex_decoding(states, kept, states, options, False)


@pytest.mark.parametrize(
    ("size", "dtype", "compiling", "words"),
    [
        (128, torch.bfloat16, True, None),
        (256, torch.float32, True, None),
        (64, torch.bfloat16, True, "gradients inside a compiled model for blocks of 64 keys"),
        (16, torch.float32, True, "gradients inside a compiled model for blocks of 16 keys"),
        (64, torch.bfloat16, False, None),
        (32, torch.float16, False, None),
        (16, torch.float32, False, None),
        (16, torch.bfloat16, False, "gradients in half precision for blocks of 16 keys"),
    ],
)
def test_on_gpus_gradients_need_tiles_that_divide_a_block(monkeypatch, size, dtype, compiling, words) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    graph = BlockGraph(Blocks(size, 512), torch.ones(1, 2, 512 // size, 512 // size, dtype=torch.bool))
    with FakeTensorMode():
        states = [torch.empty(1, 2, 512, 64, dtype=dtype, device="cuda") for _ in range(3)]
        call = Call(*states, Method(layout=BlockTopK(0.5, size)), scale=0.125, blocks=graph)
        assert flex.lacks(call) is None
        states[1].requires_grad_()
        assert flex.lacks(call) == words
        with torch.no_grad():
            assert flex.lacks(call) is None
