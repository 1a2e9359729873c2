"""One traced, exported or ONNX program computes every length and padding, or the error says what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import crisp_attention as crisp
from crisp_attention import BlockTopK, Entmax, Method, NofM, Sparsefinder, Threshold, TopK, TopP, Window
from crisp_attention.kernels import dispatch
from crisp_attention.methods.method import AnyMethod, as_method
from tests.cases import normal
from tests.programs import bert, every_second_method, llama, tokens
from tests.table import METHODS

RECORDED, LENGTHS = 12, (1, 2, 5, 12, 17, 60)
LENGTH, BATCH = torch.export.Dim("length", min=2, max=64), torch.export.Dim("batch", min=1, max=16)

pytestmark = pytest.mark.filterwarnings(
    # of torch and transformers, about what they call themselves
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore::DeprecationWarning:onnxscript",
    "ignore::DeprecationWarning:torch.onnx",
    "ignore::FutureWarning:torch.onnx",
)


class Attention(nn.Module):
    """Several methods on the same inputs."""

    def __init__(self, *methods: AnyMethod, is_causal: bool = False, backend: str = "auto") -> None:
        super().__init__()
        self.methods = [as_method(method) for method in methods]
        self.options = {"is_causal": is_causal, "backend": backend}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[Tensor]:
        return [
            crisp.attention(query, key, value, method, attn_mask=mask, **self.options)
            for method in self.methods
        ]


def states(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and a mask of keys, the second example half as long as the first."""
    query, key, value = (normal(2, 2, length, 8, seed=seed, dtype=torch.float32) for seed in range(3))
    lengths = torch.tensor([length, max(1, length // 2)])
    return query, key, value, (torch.arange(length) < lengths[:, None])[:, None, None]


STATES = ({2: LENGTH}, {2: LENGTH}, {2: LENGTH}, {3: LENGTH})


class LastHidden(nn.Module):
    """The first output of a model, of token ids and their mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if isinstance(model, LlamaForCausalLM) else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)[0]


TOKENS = ({0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH})


both_models = pytest.mark.parametrize("build", [bert, llama])


@pytest.fixture
def onnx(tmp_path: Path) -> Callable:
    """Translates a module to ONNX and returns what onnxruntime makes of it."""

    def translate(module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple | None = None) -> Callable:
        path = tmp_path / "program.onnx"
        program = torch.onnx.export(module, inputs, dynamic_shapes=shapes, dynamo=True, verbose=False)
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(*given: Tensor) -> list[Tensor]:
            feed = {name: each.numpy() for name, each in zip(names, given, strict=True)}
            return [torch.from_numpy(np.asarray(each)) for each in session.run(None, feed)]

        return run

    return translate


def same_on_states(program: Callable, module: nn.Module, lengths: tuple[int, ...] = LENGTHS) -> None:
    for length in lengths:
        inputs = states(length)
        torch.manual_seed(length)  # random keys draw
        found = program(*inputs)
        torch.manual_seed(length)
        for ours, wanted in zip(found, module(*inputs), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5, msg=f"length {length}")


def same_on_tokens(program: Callable, module: nn.Module, lengths: tuple[int, ...] = LENGTHS) -> None:
    for length in lengths:
        for side in ("right", "left"):
            ids, mask = tokens(length, side)
            found = program(ids, mask)
            found = found[0] if isinstance(found, list) else found
            real = mask.bool()
            with torch.no_grad():
                wanted = module(ids, mask)[real]
            torch.testing.assert_close(
                found[real], wanted, rtol=1e-4, atol=1e-4, msg=f"{side}, length {length}"
            )


@pytest.mark.parametrize(
    ("method", "is_causal"), [pytest.param(m, i % 2 > 0, id=n) for i, (n, m) in enumerate(METHODS.items())]
)
def test_a_trace_computes_every_length(method: Method, is_causal: bool) -> None:
    module = Attention(method, is_causal=is_causal)
    same_on_states(torch.jit.trace(module, states(RECORDED), check_trace=False), module)


@pytest.mark.slow
@both_models
def test_a_traced_model_computes_every_length_and_padding(build: Callable) -> None:
    module = LastHidden(build(*every_second_method(build)))
    with torch.no_grad():
        program = torch.jit.trace(module, tokens(RECORDED), check_trace=False)
    same_on_tokens(program, module)


@pytest.mark.slow
def test_an_exported_program_is_one_for_all_lengths_and_needs_nothing_of_ours() -> None:
    module = Attention(NofM(1, 3), is_causal=True)
    program = torch.export.export(module, states(RECORDED), dynamic_shapes=STATES)
    assert not [node for node in program.graph.nodes if "crisp" in str(node.target)]
    same_on_states(program.module(), module, LENGTHS[1:])


@pytest.mark.slow
@both_models
def test_an_exported_model_computes_every_length_batch_and_padding(build: Callable) -> None:
    # torch takes a single block for a constant: Sparsefinder's are exported for longer sequences alone
    methods = [
        method
        for method in map(as_method, every_second_method(build))
        if not (isinstance(method.layout, Sparsefinder) and method.layout.block_size > 1)
    ]
    module = LastHidden(build(*methods))
    program = torch.export.export(module, tokens(RECORDED), dynamic_shapes=TOKENS)
    same_on_tokens(program.module(), module, LENGTHS[1:])


@pytest.mark.slow
def test_a_kernel_by_name_stays_in_exports_and_is_refused_by_onnx() -> None:
    module, inputs = Attention(TopK(0.5), backend="cpu"), states(RECORDED)
    program = torch.export.export(module, inputs)
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)]
    assert "crisp.rows.default" in {str(node.target) for graph in graphs for node in graph.nodes}
    same_on_states(program.module(), module, (RECORDED,))
    refused = r"backend 'cpu' cannot compute this call .* lacks ONNX export"
    with pytest.raises(torch.onnx.OnnxExporterError, match=refused):
        torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    assert dispatch.recorder() is None


@pytest.mark.slow
def test_onnx_counts_shares_that_keys_reach_exactly_as_torch_does(onnx: Callable) -> None:
    """ONNX rounds constants to float32, in which 0.46 · 50 and 0.54 · 50 are more than 23 and 27."""
    module = Attention(TopK(0.54), TopP(0.54), BlockTopK(0.54, block_size=2), TopK(0.7), TopP(0.3))
    equal, unit = torch.zeros(1, 1, 100, 4), torch.eye(100)[None, None]
    mask = (torch.arange(100) < 50)[None, None, None]
    program = onnx(module, (equal, equal, unit, mask))
    for counts in (program(equal, equal, unit, mask), module(equal, equal, unit, mask)):
        assert [(each[0, 0, 0] > 0).sum().item() for each in counts] == [23, 27, 24, 15, 15]


TRANSLATED = {
    bert: (TopK(0.6), TopP(0.6), Method(BlockTopK(0.6, block_size=2, sink_blocks=1), Entmax())),
    llama: (NofM(1, 3), Threshold(0.6), Method(Window(5), TopK(0.5, min_keep=2))),
}


@pytest.mark.slow
@both_models
def test_onnxruntime_computes_every_length_batch_and_padding_of_a_model(
    build: Callable, onnx: Callable
) -> None:
    module = LastHidden(build(*TRANSLATED[build]))
    same_on_tokens(onnx(module, tokens(RECORDED), TOKENS), module, LENGTHS[1:])
