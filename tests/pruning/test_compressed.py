"""Layers that hold and compute the blocks of a pruned weight, and nothing of the others."""

import copy
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, GPT2LMHeadModel

import crisp_attention as crisp
from crisp_attention import pruning
from crisp_attention.kernels import triton_block_linear
from crisp_attention.pruning import BlockLinear
from crisp_attention.pruning.matrices import Matrix
from tests.pruning.test_masks import bert
from tests.pruning.test_steps import BATCHES

GROUPS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (5, 8), (1, 16), (3, 16), (4, 16)]


def blocks_of(
    rows: int, columns: int, size: int, share: float, seed: int = 0, groups: tuple[int, int] | None = None
) -> torch.Tensor:
    """A weight with about this share of its blocks, not as many in every row of blocks, of N of M inputs at most."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows * size, columns * size, generator=generator)
    if groups is not None:
        drawn = torch.rand(weight.shape, generator=generator).unflatten(1, (-1, groups[1]))
        weight = weight * (drawn.argsort(dim=2).argsort(dim=2) < groups[0]).flatten(1)
    kept = torch.rand(rows, columns, generator=generator) < share
    return weight * kept.repeat_interleave(size, 0).repeat_interleave(size, 1)


@settings(deadline=None)  # it compiles at first
@given(
    size=st.sampled_from([8, 16, 32, 64]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    share=st.floats(0, 1),
    count=st.integers(0, 40) | st.just(250),
    bias=st.booleans(),
    gelu=st.booleans(),
    groups=st.sampled_from([None, *GROUPS]),
    seed=st.integers(0, 100),
)
def test_outputs_are_those_of_the_dense_weight(
    size, rows, columns, share, count, bias, gelu, groups, seed
) -> None:
    assume(groups is None or size % groups[1] == 0)
    weight = blocks_of(rows, columns, size, share, seed, groups)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, columns * size, generator=generator)
    own = torch.randn(rows * size, generator=generator) if bias else None
    layer = BlockLinear.of(weight, own, size, gelu)
    assert layer.weight.equal(weight)
    wanted = states.double() @ weight.double().T + (0 if own is None else own.double())
    wanted = nn.functional.gelu(wanted) if gelu else wanted
    with torch.no_grad():
        found = layer(states)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


def test_inputs_of_any_shape_and_strides() -> None:
    layer = BlockLinear.of(blocks_of(2, 3, 16, 0.5), None, 16).requires_grad_(False)
    states = torch.randn(48, 5, 2).permute(2, 1, 0)
    torch.testing.assert_close(layer(states), states @ layer.weight.T)
    assert layer(states[0, 0]).shape == (32,)
    assert layer(states.bfloat16().float().double().float()).shape == (2, 5, 32)


def test_gelu_is_exact_to_the_last_digits_and_keeps_what_is_not_finite() -> None:
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, 0.0, 1e30, torch.nan])])
    states = nn.functional.pad(values[:, None], (0, 7))
    layer = BlockLinear.of(torch.eye(8), None, 8, gelu=True).requires_grad_(False)
    found = layer(states)[:, 0]
    wanted = nn.functional.gelu(values.double())
    torch.testing.assert_close(found.double(), wanted, rtol=3e-7, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_bfloat16_is_rounded_once(groups) -> None:
    torch.manual_seed(0)
    layer = (
        BlockLinear.of(blocks_of(2, 3, 16, 0.5, groups=groups), torch.randn(32), 16, gelu=True)
        .bfloat16()
        .requires_grad_(False)
    )
    states = torch.randn(5, 48).bfloat16()
    wanted = nn.functional.gelu(states.double() @ layer.weight.double().T + layer.bias.double())
    assert layer(states).dtype == torch.bfloat16
    torch.testing.assert_close(layer(states).double(), wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "size", "share"),
    [
        ((2, 4), 32, 0.53125),
        ((1, 4), 32, 0.28125),
        ((4, 8), 64, 0.5625),
        ((3, 16), 16, 0.25),
        (None, 32, 1),
    ],
)
def test_groups_take_the_bytes_of_their_weights_and_a_few_bits(groups, size, share) -> None:
    layer = BlockLinear.of(blocks_of(2, 2, size, 1, groups=groups), None, size)
    held = layer.blocks.nbytes + (0 if layer.places is None else layer.places.nbytes)
    assert held == share * 4 * layer.in_features * layer.out_features
    assert layer.groups == (None if groups is None else list(groups))
    assert (groups is None) == ("of each" not in repr(layer))


def test_groups_that_save_too_little_or_hold_too_many_stay_whole() -> None:
    for groups in ((3, 4), (5, 8), (7, 8)):
        assert BlockLinear.of(blocks_of(2, 2, 16, 1, groups=groups), None, 16).groups is None


def test_weights_of_groups_are_trained_and_no_others() -> None:
    weight, states = blocks_of(2, 3, 16, 0.7, groups=(2, 4)), torch.randn(4, 48)
    layer, dense = BlockLinear.of(weight, None, 16), weight.clone().requires_grad_()
    nn.functional.linear(states, dense).square().sum().backward()
    layer(states).square().sum().backward()
    step, before = 0.01, layer.weight.detach().clone()
    with torch.no_grad():
        layer.blocks -= step * layer.blocks.grad
    moved, there = layer.weight.detach() - before, weight != 0
    torch.testing.assert_close(moved[there], -step * dense.grad[there], rtol=1e-3, atol=1e-5)
    assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()


def test_blocks_are_trained_as_the_weight_would_be() -> None:
    weight = blocks_of(2, 3, 16, 0.5)
    layer, states = BlockLinear.of(weight, torch.zeros(32), 16), torch.randn(4, 48)
    dense = weight.clone().requires_grad_()
    nn.functional.linear(states, dense).square().sum().backward()
    layer(states).square().sum().backward()
    size, place = 16, layer.index.long()
    tiles = dense.grad.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2).transpose(2, 3)
    wanted = tiles.gather(1, place[:, :, None, None].expand(-1, -1, size, size))
    torch.testing.assert_close(layer.blocks.grad, wanted)


def test_a_pruned_model_is_compressed_into_another_of_the_same_outputs() -> None:
    model = bert(hidden_size=64, intermediate_size=128)
    pruning.step(model, BATCHES, 0.85, pattern="2:4", block_size=16)
    before = copy.deepcopy(model.state_dict())
    fast = pruning.compress(model, least_weights=0)
    assert sum(isinstance(each, BlockLinear) for each in fast.modules()) >= 3
    assert not any(isinstance(each, BlockLinear) for each in model.modules())
    assert all(each.equal(before[name]) for name, each in model.state_dict().items())
    tokens = BATCHES[0]["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(fast(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        with torch.no_grad():
            assert again(tokens).logits.equal(fast(tokens).logits)
    twin = pruning.compress(model, least_weights=0)
    twin.load_state_dict(fast.state_dict())


def test_gelu_is_computed_by_the_layer_before_it_where_that_can_be_told() -> None:
    exact, other = nn.GELU(), nn.GELU("tanh")
    layers = [nn.Linear(64, 64) for _ in range(3)]
    for each in layers:
        each.weight.data = torch.block_diag(*torch.randn(4, 16, 16))
    order = [layers[0], exact, layers[1], other, layers[2], nn.Dropout(), exact]
    model = nn.Sequential(nn.Sequential(*order), exact).eval()
    fast = pruning.compress(model, least_weights=0)
    assert [each.gelu for each in fast.modules() if isinstance(each, BlockLinear)] == [True, False, False]
    assert [type(each) for each in fast[0]].count(nn.Identity) == 1
    states = torch.randn(5, 64, requires_grad=True)
    for wanted, found in ((model(states), fast(states)), (model(states.detach()), fast(states.detach()))):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    written = bert(hidden_size=64, intermediate_size=128, hidden_act="gelu_new")
    for model, told in ((bert(hidden_size=64, intermediate_size=128), True), (written, False)):
        pruning.step(model, [], 0.75, pattern=None, block_size=16, saliency="magnitude")
        fast = pruning.compress(model, least_weights=0)
        layer = fast.bert.encoder.layer[0]
        assert (
            layer.intermediate.dense.gelu
            == told
            == isinstance(layer.intermediate.intermediate_act_fn, nn.Identity)
        )
        assert not layer.output.dense.gelu


@pytest.mark.parametrize(("pattern", "target"), [(None, 0.75), ("2:4", 0.88)])
def test_it_is_saved_smaller_and_loaded_by_crisp_and_by_transformers(pattern, target, tmp_path) -> None:
    model = bert(hidden_size=64, intermediate_size=128)
    pruning.step(model, BATCHES, target, pattern=pattern, block_size=16)
    fast = pruning.compress(model, least_weights=0)
    for each, name in ((model, "pruned"), (fast, "small")):
        each.save_pretrained(tmp_path / name)
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("pruned", "small")}
    layers = [each for each in fast.modules() if isinstance(each, BlockLinear)]
    dense = sum(4 * each.in_features * each.out_features for each in layers)
    held = [(each.blocks, each.index, each.places) for each in layers]
    kept = sum(4 * tensor.numel() for each in held for tensor in each if tensor is not None)
    assert {str(each.groups) for each in layers} == {"None" if pattern is None else "[2, 4]"}
    assert sizes["small"] == pytest.approx(sizes["pruned"] - dense + kept, abs=4096)
    tokens = BATCHES[0]["input_ids"]
    for again in (crisp.load(tmp_path / "small"), type(model).from_pretrained(tmp_path / "small")):
        assert [each.sizes for each in again.modules() if isinstance(each, BlockLinear)] == [
            each.sizes for each in layers
        ]
        assert isinstance(again.bert.encoder.layer[0].intermediate.intermediate_act_fn, nn.Identity)
        with torch.no_grad():
            assert again.eval()(tokens).logits.equal(fast(tokens).logits)
    assert any(each.gelu for each in layers)
    again.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert crisp.load(tmp_path / "again").eval()(tokens).logits.equal(fast(tokens).logits)
    assert "quantization_config" not in model.config.to_diff_dict()


def test_what_was_saved_before_there_were_groups_is_loaded(tmp_path) -> None:
    model = bert(hidden_size=64, intermediate_size=128)
    pruning.step(model, BATCHES, 0.75, pattern=None, block_size=16)
    fast = pruning.compress(model, least_weights=0)
    fast.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for sizes in config["quantization_config"]["layers"].values():
        assert sizes.pop("groups") is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = BATCHES[0]["input_ids"]
    with torch.no_grad():
        assert crisp.load(tmp_path).eval()(tokens).logits.equal(fast(tokens).logits)


def test_gpt2_and_sparse_attention(tmp_path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=64, n_layer=2, n_head=2, n_positions=32)).eval()
    crisp.sparsify(model, crisp.TopK(0.5))
    tokens = torch.arange(20)[None]
    pruning.step(model, [{"input_ids": tokens, "labels": tokens}], 0.75, pattern=None, block_size=16)
    fast = pruning.compress(model, least_weights=0)
    assert crisp.is_sparse(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
        wanted, found = (
            each.generate(tokens[:, :4], max_new_tokens=8, do_sample=False) for each in (model, fast)
        )
    assert found.equal(wanted)
    fast.save_pretrained(tmp_path)
    again = crisp.load(tmp_path).eval()
    assert crisp.is_sparse(again)
    with torch.no_grad():
        assert again(tokens).logits.equal(fast(tokens).logits)


def test_the_size_of_blocks_is_that_of_least_time() -> None:
    def size(weight: torch.Tensor) -> int | None:
        layer = nn.Linear(*reversed(weight.shape))
        layer.weight.data = weight
        return pruning.compressed.size_for(Matrix("layer", layer), least_weights=0)

    for wanted in (8, 16, 32, 64):
        diagonal = torch.block_diag(*(torch.ones(wanted, wanted) for _ in range(512 // wanted)))
        assert size(diagonal) == wanted
    assert size(torch.ones(64, 64)) is None
    assert size(torch.ones(12, 12)) is None
    assert size(torch.zeros(64, 64)) is not None


def test_layers_too_small_to_gain_stay_dense_unless_they_are_asked_for() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2))
    pruning.step(model, [], 0.85, pattern=None, block_size=16, saliency="magnitude")
    assert [isinstance(each, BlockLinear) for each in pruning.compress(model)[:3:2]] == [True, False]
    assert all(isinstance(each, BlockLinear) for each in pruning.compress(model, least_weights=0)[:3:2])
    with pytest.raises(ValueError, match="expected layers of at least 100,000 weights"):
        pruning.compress(model, least_weights=100_000)


def test_a_dense_model_is_refused_and_skipped_layers_stay() -> None:
    with pytest.raises(
        ValueError, match="BertForSequenceClassification has no layer that blocks would make faster"
    ):
        pruning.compress(bert(), least_weights=0)
    model = bert(hidden_size=64, intermediate_size=128)
    pruning.step(model, BATCHES, 0.85, block_size=16)
    fast = pruning.compress(model, skip=["*.intermediate.*"], least_weights=0)
    assert isinstance(fast.bert.encoder.layer[0].intermediate.dense, nn.Linear)


def test_it_compiles_in_one_graph_and_torch_sees_the_operator() -> None:
    layer = BlockLinear.of(blocks_of(2, 3, 16, 0.5), torch.zeros(32), 16).requires_grad_(False)
    states = torch.randn(5, 48)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert compiled(states).equal(layer(states))
    torch.library.opcheck(
        torch.ops.crisp.block_linear.default,
        (states, layer.blocks.detach(), None, 1, layer.index, None, True),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.slow
def test_another_process_loads_it(tmp_path) -> None:
    model = bert(hidden_size=64, intermediate_size=128)
    pruning.step(model, [], 0.7, pattern=None, block_size=16, saliency="magnitude")
    pruning.compress(model, least_weights=0).save_pretrained(tmp_path)
    program = (
        "import sys, torch, crisp_attention\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "ids = torch.arange(12)[None]\n"
        "print([Auto.from_pretrained(sys.argv[1]).eval()(ids).logits.tolist(),"
        " crisp_attention.load(sys.argv[1]).eval()(ids).logits.tolist()])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    expected = model(torch.arange(12)[None]).logits
    for each in json.loads(found.stdout):
        torch.testing.assert_close(torch.tensor(each), expected.detach(), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_computed_as_float32_and_rounded_once() -> None:
    layer, states = BlockLinear.of(blocks_of(2, 3, 16, 0.5), torch.randn(32), 16), torch.randn(4, 48)
    half = copy.deepcopy(layer).bfloat16()
    with torch.no_grad():
        expected = torch.nn.functional.linear(
            states.bfloat16().float(), half.weight.float(), half.bias.float()
        )
        found = half(states.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-5)


def test_a_bias_alone_is_trained() -> None:
    layer, states = BlockLinear.of(blocks_of(2, 3, 16, 0.5), torch.zeros(32), 16), torch.randn(4, 48)
    layer.blocks.requires_grad_(False)
    layer(states).sum().backward()
    assert layer.bias.grad.equal(torch.full((32,), 4.0))


def test_forward_mode_gradients_and_recorded_programs_use_the_dense_weight() -> None:
    layer = BlockLinear.of(blocks_of(2, 3, 16, 0.5), torch.ones(32), 16).requires_grad_(False).eval()
    states, tangents = torch.randn(4, 48), torch.randn(4, 48)
    found = torch.func.jvp(layer, (states,), (tangents,))[1]
    torch.testing.assert_close(found, tangents @ layer.weight.T)
    program = torch.export.export(layer, (states,))
    assert not any("crisp" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(states), layer(states))


@pytest.mark.parametrize(
    ("dtype", "major", "learns", "autocast", "wanted"),
    [
        (torch.float32, 8, False, False, True),
        (torch.bfloat16, 9, False, False, True),
        (torch.float16, 7, False, False, False),
        (torch.float64, 9, False, False, False),
        (torch.bfloat16, 9, True, False, False),
        (torch.float32, 9, False, True, False),
    ],
)
def test_what_computes_it_on_a_gpu(dtype, major, learns, autocast, wanted, monkeypatch) -> None:
    """On a GPU that need not be there: its tensors have no values."""
    pytest.importorskip("triton", reason="triton is not installed; it is for Linux only")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: autocast)
    with FakeTensorMode():
        index = torch.zeros(2, 3, dtype=torch.int32, device="cuda")
        blocks, states = (
            torch.empty(shape, device="cuda", dtype=dtype) for shape in ((2, 3, 16, 16), (5, 4, 96))
        )
        layer = BlockLinear(blocks, index, 96, None).requires_grad_(learns)
        kernel = pruning.compressed.kernel_for(states, layer.blocks, layer.bias)
        assert kernel is (triton_block_linear.block_linear if wanted else None)
        if wanted:
            assert layer(states).shape == (5, 4, 32)
