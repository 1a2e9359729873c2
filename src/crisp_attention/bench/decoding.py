"""A whole decoder that generates: the time of one token after many, with a cache."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from crisp_attention.bench.contender import CRISP, DENSE, Absent, Call, UnavailableError
from crisp_attention.bench.results import Situated
from crisp_attention.bench.rounds import Effort
from crisp_attention.bench.situated import disagreement, timed_in_turns
from crisp_attention.kernels.dispatch import REFERENCE
from crisp_attention.methods.layouts import BlockTopK, Window
from crisp_attention.methods.method import AnyMethod, as_method
from crisp_attention.models.apply import sparsify

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 512, 8, 1024
ROW = f"decoder of {LAYERS} layers"
METHODS: dict[str, AnyMethod] = {"blocks": BlockTopK(0.8), "window": Window(257)}
AFTER = {False: (128, 4096), True: (128,)}  # tokens, by whether the measurement is quick


def planned(quick: bool) -> list[tuple[str, int]]:
    """Method and tokens in the cache."""
    return [(name, tokens) for tokens in AFTER[quick] for name in METHODS]


@torch.no_grad()
def measure_decoder(effort: Effort, quick: bool, told: Callable[[str], None]) -> list[Situated]:
    """Time a token of a Llama with random weights, its cache filled with random keys and values, on the CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2 * max(AFTER[False]),
    )
    dense = LlamaForCausalLM(config).eval()
    return [_measured(dense, name, tokens, effort, told) for name, tokens in planned(quick)]


def _measured(
    dense: LlamaForCausalLM, name: str, tokens: int, effort: Effort, told: Callable[[str], None]
) -> Situated:
    told(f"{ROW}, {name}, after {tokens:,} tokens")
    method, timed, absent = as_method(METHODS[name]), [], []
    states = [torch.randn(1, HEADS, tokens, WIDTH // HEADS) for _ in range(2 * LAYERS)]

    def next_token(model: Any) -> Callable[[], Tensor]:
        cache = DynamicCache()
        for layer in range(LAYERS):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)

        def call() -> Tensor:
            logits: Tensor = model(torch.tensor([[7]]), past_key_values=cache).logits
            cache.crop(-1)
            return logits

        return call

    ours = sparsify(copy.deepcopy(dense), method)
    meant = sparsify(copy.deepcopy(dense), method, backend=REFERENCE)
    calls: dict[str, Call] = {DENSE: next_token(dense), CRISP: next_token(ours)}
    try:
        if problem := disagreement((next_token(ours)(),), (next_token(meant)(),)):
            raise UnavailableError(problem)
        timed = timed_in_turns(calls, effort)
    except UnavailableError as reason:
        absent.append(Absent(CRISP, str(reason)))
    size = f"after {tokens:,}"
    return Situated("generation", f"{ROW}, {name}", size, method.spec, False, timed, absent)
