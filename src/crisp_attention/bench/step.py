"""The part `step`: whole fine-tuning steps of a real model, with dense and sparse copies interleaved."""

import copy
from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from crisp_attention.bench.contender import CRISP, DENSE, Absent, Call
from crisp_attention.bench.results import Step
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import CheckpointError
from crisp_attention.methods.method import Method
from crisp_attention.models.apply import sparsify
from crisp_attention.runs.sources import minilm_folder

MODEL = "builtin:minilm"


def measure_steps(
    sizes: tuple[tuple[int, int], ...],
    method: Method,
    effort: Effort,
    dtype: str,
    device: str,
    told: Callable[[str], None],
) -> list[Step]:
    """Time steps at each (batch, length): MiniLM with its own dropout, sequences without padding, AdamW."""
    try:
        dense: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            minilm_folder(), num_labels=2, attn_implementation="sdpa"
        )
    except CheckpointError as error:
        absent = [Absent(MODEL, str(error))]
        return [Step(MODEL, method.spec, batch, length, dtype, device, [], absent) for batch, length in sizes]
    dense.to(device)  # type: ignore[arg-type]
    sparse = sparsify(copy.deepcopy(dense), method)
    steps = {DENSE: _Step(dense, dtype), CRISP: _Step(sparse, dtype)}
    found = []
    for batch, length in sizes:
        told(f"fine-tuning step, {length} tokens, batch of {batch}")
        tokens = torch.randint(1000, 20000, (batch, length), device=device)
        labels = torch.randint(2, (batch,), device=device)
        calls = {name: step.on(tokens, labels) for name, step in steps.items()}
        for call in calls.values():
            warm_up(call)
        times = interleaved(calls, effort, clock_of(device))
        found.append(Step(MODEL, method.spec, batch, length, dtype, device, compared(times, DENSE), []))
    return found


class _Step:
    """A model in training, with its optimizer."""

    def __init__(self, model: PreTrainedModel, dtype: str) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        self.dtype = getattr(torch, dtype)

    def on(self, tokens: torch.Tensor, labels: torch.Tensor) -> Call:
        """A step on this batch; in half precision under autocast."""

        def step() -> None:
            half = self.dtype != torch.float32
            with torch.autocast(tokens.device.type, self.dtype if half else None, enabled=half):
                loss = self.model(input_ids=tokens, labels=labels).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return step
