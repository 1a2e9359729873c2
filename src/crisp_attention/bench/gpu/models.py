"""Whole models with random weights: one of MiniLM's shape, and a decoder of a billion parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DynamicCache,
    LlamaConfig,
)

from crisp_attention.bench.contender import Call
from crisp_attention.bench.gpu.attention import BACKENDS
from crisp_attention.bench.gpu.cells import DENSE, FORWARD, STEP, Cell
from crisp_attention.bench.gpu.measured import Candidate, difference, measure, unmeasured
from crisp_attention.bench.gpu.parts import Emit, Setting
from crisp_attention.kernels.dispatch import AUTO, REFERENCE
from crisp_attention.methods.spec import parse
from crisp_attention.models.apply import sparsify

METHODS = {
    "top-k": "topk:sparsity=0.8",
    "block top-k, 64": "block_topk:sparsity=0.8",
    "window of 257": "window:width=257",
}
NAMED = {name: backend for name, backend in BACKENDS.items() if name != DENSE[-1]}  # all but math
MINILM: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
DECODER: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
    "max_position_embeddings": 16384,
}
SMALL = {"num_hidden_layers": 2, "vocab_size": 1024}  # of the models that are compared with the reference
BATCHES = ((32, 128), (8, 512))  # texts, tokens
CHECKED = 512  # tokens
PREFILL, TOKENS = 4096, 8  # tokens read, and tokens decoded after them, one by one
PREFILLED, DECODED = f"reads {PREFILL:,} tokens", f"one token after {PREFILL:,}"
NAMES = (*NAMED, *METHODS)


@dataclass(frozen=True)
class Sizes:
    """Of what is measured; smaller ones in tests."""

    minilm: dict[str, Any]
    decoder: dict[str, Any]
    batches: tuple[tuple[int, int], ...] = BATCHES
    prefill: int = PREFILL


FULL = Sizes(MINILM, DECODER)


def minilm_group(dtype: str) -> str:
    """Its table."""
    return f"MiniLM's shape, {dtype}"


BILLION = "decoder of a billion parameters, bfloat16"
CELLS = (
    *(
        Cell(minilm_group(dtype), f"{batch} x {length}", direction, NAMES)
        for dtype in ("bfloat16", "float32")
        for batch, length in BATCHES
        for direction in (FORWARD, STEP)
    ),
    *(Cell(BILLION, column, FORWARD, NAMES) for column in (PREFILLED, DECODED)),
)


def run_minilm(setting: Setting, emit: Emit, sizes: Sizes = FULL) -> None:
    """Forward passes and training steps (forward, backward, AdamW); bfloat16 by autocast."""
    torch.manual_seed(0)
    models = _models(lambda: _bert(sizes.minilm, setting.device))
    differences = _differences(lambda: _bert(sizes.minilm | SMALL, setting.device), setting.device)
    for dtype in ("bfloat16", "float32"):
        for batch, length in sizes.batches:
            tokens = torch.randint(1000, (batch, length), device=setting.device)
            for direction in (FORWARD, STEP):
                cell = Cell(minilm_group(dtype), f"{batch} x {length}", direction, NAMES)
                print(f"{cell.group}, {cell.column}, {direction}", flush=True)
                calls = {
                    name: _minilm_call(model, tokens, dtype, direction) for name, model in models.items()
                }
                emit(_measured(cell, dtype, calls, differences, setting))


def _minilm_call(model: nn.Module, tokens: Tensor, dtype: str, direction: str) -> Callable[[], Call]:
    half = dtype != "float32"
    device = tokens.device.type

    def autocast() -> torch.autocast:
        return torch.autocast(device, torch.bfloat16 if half else None, enabled=half)

    def forward() -> object:
        with torch.no_grad(), autocast():
            return model(input_ids=tokens)

    def prepare() -> Call:
        model.train(direction == STEP)
        if direction == FORWARD:
            return forward
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        labels = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)

        def step() -> None:
            with autocast():
                loss = model(input_ids=tokens, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return prepare


@torch.no_grad()
def run_decoder(setting: Setting, emit: Emit, sizes: Sizes = FULL) -> None:
    """Reading a text, and decoding tokens one by one after it."""
    torch.manual_seed(0)
    models = _models(lambda: _llama(sizes.decoder, setting.device, torch.bfloat16).eval())
    small = sizes.decoder | SMALL
    differences = _differences(
        lambda: _llama(small, setting.device, torch.float32).eval(), setting.device, decode=True
    )
    tokens = torch.randint(1000, (1, sizes.prefill), device=setting.device)
    for column, of, count in ((PREFILLED, _prefill, 1), (DECODED, _decode, TOKENS)):
        cell = Cell(BILLION, column, FORWARD, NAMES)
        print(f"{cell.group}, {column}", flush=True)
        calls = {name: of(model, tokens) for name, model in models.items()}
        emit(_measured(cell, "bfloat16", calls, differences, setting, count))


def _prefill(model: Any, tokens: Tensor) -> Callable[[], Call]:
    def read() -> object:
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=True, logits_to_keep=1)

    return lambda: read


def _decode(model: Any, tokens: Tensor) -> Callable[[], Call]:
    def prepare() -> Call:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)

        def decode() -> None:
            with torch.no_grad():
                for number in range(TOKENS):
                    model(input_ids=tokens[:, number : number + 1], past_key_values=cache)
            cache.crop(-TOKENS)

        return decode

    return prepare


def _measured(
    cell: Cell,
    dtype: str,
    calls: dict[str, Callable[[], Call]],
    differences: dict[str, Callable[[], float]],
    setting: Setting,
    per_call: int = 1,
) -> dict[str, Any]:
    if setting.late:
        return unmeasured(cell, dtype).plain()
    candidates = [
        Candidate(name, _with_backend(name, prepare), differences.get(name), optional=name in NAMED)
        for name, prepare in calls.items()
    ]
    return measure(cell, dtype, candidates, setting, per_call).plain()


def _with_backend(name: str, prepare: Callable[[], Call]) -> Callable[[], Call]:
    """The same where torch's dense attention is computed by the backend of this name, if it is one."""

    def backend() -> AbstractContextManager[Any]:
        return sdpa_kernel(NAMED[name]) if name in NAMED else nullcontext()

    def prepared() -> Call:
        with backend():
            call = prepare()

        def called() -> object:
            with backend():
                return call()

        return called

    return prepared


def _models(make: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    """A dense model under the names of all backends, and a copy of it for each method."""
    dense = make()
    own = {name: sparsify(deepcopy(dense), parse(spec)) for name, spec in METHODS.items()}
    return dict.fromkeys(NAMED, dense) | own


def _differences(
    make: Callable[[], nn.Module], device: str, decode: bool = False
) -> dict[str, Callable[[], float]]:
    """How far sparse models of two layers, in float32, are from those that the reference computes; by method."""
    tokens = torch.randint(1000, (2, CHECKED), device=device)

    @cache
    def of(name: str) -> float:
        dense = make().eval()
        found, expected = (
            _logits(sparsify(deepcopy(dense), parse(METHODS[name]), backend=backend), tokens, decode)
            for backend in (AUTO, REFERENCE)
        )
        return difference([found], [expected])

    return {name: partial(of, name) for name in METHODS}


@torch.no_grad()
def _logits(model: Any, tokens: Tensor, decode: bool) -> Tensor:
    """Of all tokens, or of those that follow the first half, one by one."""
    if not decode:
        logits: Tensor = model(input_ids=tokens).logits
        return logits
    cache, half = DynamicCache(config=model.config), tokens.shape[1] // 2
    found = [model(input_ids=tokens[:, :half], past_key_values=cache).logits]
    found += [
        model(input_ids=tokens[:, number : number + 1], past_key_values=cache).logits
        for number in range(half, half + TOKENS)
    ]
    return torch.cat(found, dim=1)


def _bert(sizes: dict[str, Any], device: str) -> nn.Module:
    with torch.device(device):
        model: nn.Module = AutoModelForSequenceClassification.from_config(
            BertConfig(**sizes), attn_implementation="sdpa"
        )
    return model


def _llama(sizes: dict[str, Any], device: str, dtype: torch.dtype) -> nn.Module:
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(
            LlamaConfig(**sizes), attn_implementation="sdpa", dtype=dtype
        )
    return model
