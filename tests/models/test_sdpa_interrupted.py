"""What hooks and modes must survive: interruptions, compilers, wrappers, any arguments of torch's function."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

import crisp_attention as crisp
from crisp_attention import Entmax, Method, PerHead, TopK
from crisp_attention.models.sparse_model import SparseModel
from tests.models.by_hand import IDS, WIDTH, Attention, built, nothing_is_left
from tests.models.test_sdpa_found import STATES, Net


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_call_leaves_no_other_model_sparse(how: type[BaseException]) -> None:
    model, other = crisp.sparsify(built(), TopK(0.5)), built()
    dense, sparse = other(IDS), model(IDS)

    def stop(*given) -> None:
        raise how

    handle = model.blocks[1].attention.out.register_forward_hook(stop)
    with pytest.raises(how):
        model(IDS)
    handle.remove()
    assert other(IDS).equal(dense)
    assert model(IDS).equal(sparse)
    assert _get_current_function_mode() is None  # the next call of a sparse module has tidied up
    assert other(IDS).equal(dense)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["whole", "blocks"])
def test_a_model_that_was_compiled_before_is_compiled_again(which: str) -> None:
    torch.compiler.reset()
    model, dense = built(), built()(IDS)
    run = torch.compile(model, backend="eager") if which == "whole" else model
    for block in model.blocks if which == "blocks" else ():
        block.compile(backend="eager")
    torch.testing.assert_close(run(IDS), dense)
    crisp.sparsify(model, TopK(0.5))
    sparse = crisp.sparsify(built(), TopK(0.5))(IDS)
    torch.testing.assert_close(run(IDS), sparse)
    with crisp.measuring(model) as seen:
        run(IDS)
    assert len(seen.table()) == 6
    crisp.densify(model)
    torch.testing.assert_close(run(IDS), dense)
    with crisp.measuring(model) as seen:
        run(IDS)
    assert len(seen.table()) == 6
    torch.testing.assert_close(run(IDS), dense)


@pytest.mark.slow
def test_torchs_own_layers_compile_into_one_graph() -> None:
    torch.compiler.reset()
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=0.0)
    model = crisp.sparsify(nn.TransformerEncoder(layer, 2), TopK(0.5))
    wanted = model(STATES)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(STATES), wanted)
    assert not torch.allclose(compiled(STATES), crisp.densify(model)(STATES), atol=1e-4)


def test_checkpointing_inside_of_a_module_is_refused_where_it_would_be_wrong() -> None:
    class Inside(Attention):
        def forward(self, states, mask=None):
            return checkpoint(super().forward, states, mask, use_reentrant=True)

    model = crisp.sparsify(Net(part=Inside()), TopK(0.5))
    states = STATES.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="checkpoint the whole module instead"):
        model(states)
    assert _get_current_function_mode() is None
    model.eval()(states)


def test_wrappers_of_adapters_are_looked_through(tmp_path) -> None:
    config = LoraConfig(r=2, target_modules=["qkv"], init_lora_weights="gaussian")
    dense = built()(IDS)
    for wrap_first in (False, True):
        model = built()
        if not wrap_first:
            crisp.sparsify(model, TopK(0.5))
        wrapped = get_peft_model(model, config)
        if wrap_first:
            crisp.sparsify(wrapped, TopK(0.5))
        assert SparseModel.of(wrapped).root is model
        crisp.set_sparsity(wrapped, 0.7)
        merged = wrapped.merge_and_unload()
        assert SparseModel.of(merged).sparsity == dict.fromkeys(
            [f"blocks.{i}.attention" for i in range(3)], 0.7
        )
        crisp.save(merged, tmp_path / str(wrap_first))
        assert crisp.load_into(built(), tmp_path / str(wrap_first))(IDS).equal(merged(IDS))
        torch.testing.assert_close(crisp.densify(merged)(IDS), dense)
        assert nothing_is_left(merged)


class Called(nn.Module):
    """Calls torch's function with whatever it is given."""

    num_heads = 4

    def forward(self, query, key, value, **named):
        return scaled_dot_product_attention(query, key, value, **named)


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ([(2, 4, 6, 8)] * 3, {"attn_mask": causal_upper_left(6, 6)}),
        ([(2, 4, 3, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {"attn_mask": causal_lower_right(3, 6)}),
        ([(1, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {}),
        ([(2, 1, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {}),
        ([(4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {}),
        ([(2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8)], {"enable_gqa": True}),
        ([(3, 2, 4, 6, 8)] * 3, {"is_causal": True}),
    ],
)
def test_arguments_mean_what_they_mean_to_torch(shapes: list[tuple[int, ...]], named: dict) -> None:
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=random) for shape in shapes]
    model = Called()
    wanted = model(*given, **named)
    sparse = crisp.sparsify(nn.ModuleList([model]), TopK(keep=10**6), backend="reference")
    torch.testing.assert_close(sparse[0](*given, **named), wanted)


def test_heads_that_do_not_fit_are_refused_as_torch_refuses_them() -> None:
    model = nn.ModuleList([Called()])
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    crisp.sparsify(model, TopK(0.5))
    with pytest.raises(ValueError, match="4 query heads share 2 key heads only with enable_gqa=True"):
        model[0](query, key, key)
    attention = crisp.sparsify(nn.ModuleList([nn.MultiheadAttention(8, 2)]), TopK(0.5))[0]
    states = torch.randn(6, 2, 8)
    with pytest.raises(RuntimeError, match=r"is_causal .* is a hint at its attn_mask"):
        attention(states, states, states, is_causal=True, need_weights=False)


@pytest.mark.parametrize("method", [Entmax("learned"), PerHead((Method(rule=TopK(0.5)), Method()))])
@pytest.mark.parametrize("examples", [1, 3])
def test_heads_may_be_folded_into_the_first_dimension(method, examples: int) -> None:
    model = nn.ModuleList([Called()])
    model[0].num_heads, model[0].head_dim = 2, 8
    crisp.sparsify(model, method)
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(examples, 2, 6, 8, generator=random) for _ in range(3))
    mask = torch.rand(examples, 2, 6, 6, generator=random) < 0.8
    wanted = model[0](query, key, value, attn_mask=mask)
    found = model[0](*(each.flatten(0, 1) for each in (query, key, value)), attn_mask=mask.flatten(0, 1))
    torch.testing.assert_close(found, wanted.flatten(0, 1))
    with pytest.raises(
        ValueError, match=r"0: Called says that it has 2 heads, which queries of the shape \(3, 6, 8\)"
    ):
        model[0](*(torch.randn(3, 6, 8) for _ in range(3)))
