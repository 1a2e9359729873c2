"""What is timed in this process: attention alone, and whole fine-tuning steps of a real model."""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import (
    CRISP,
    DENSE,
    Absent,
    Call,
    Contender,
    UnavailableError,
    crisp,
    dense,
)
from crisp_attention.bench.limit import arithmetic, products
from crisp_attention.bench.methods import achieved_sparsity
from crisp_attention.bench.peers import FLEX
from crisp_attention.bench.results import Attention, Step
from crisp_attention.bench.roster import roster
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import CheckpointError, first_line
from crisp_attention.methods.method import Method
from crisp_attention.models.apply import sparsify
from crisp_attention.runs.sources import minilm_folder

LENGTH = 512
TOLERANCE = 1e-3  # of the largest entry: float32, sums in another order
QUICK = {FLEX: "left out of a quick measurement: compiling takes half a minute"}


def disagreeing(method: Method, shape: Shape, backward: bool, skip: dict[str, str]) -> dict[str, str]:
    """Contenders that disagree with our reference on a small float32 case, with the reason, by name.

    Compared are outputs or, with `backward`, gradients. A contender that cannot compute them counts too.
    """
    small = replace(shape, batch=1, heads=2, length=LENGTH, dtype="float32")
    expected = _computed(crisp(method, "reference"), small, backward)
    found, absent = roster(method, small, skip)
    reasons = {each.name: each.reason for each in absent}
    for contender in found:
        try:
            computed = _computed(contender, small, backward)
        except UnavailableError as reason:
            reasons[contender.name] = str(reason)
            continue
        except Exception as error:  # other people's code: whatever it raises, the run continues without it
            reasons[contender.name] = f"fails: {first_line(error)}"
            continue
        if (worst := _difference(computed, expected)) > TOLERANCE:
            what = "gradients differ" if backward else "output differs"
            reasons[contender.name] = (
                f"wrong: its {what} from the reference by {worst:.1e} of the largest entry; "
                f"at most {TOLERANCE:.0e} is allowed"
            )
    return reasons


def _computed(contender: Contender, shape: Shape, backward: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(0)  # for what is drawn at random
    return contender.call(shape, backward)()


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    ratios = [
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    ]
    return max(ratios) if all(ratio == ratio for ratio in ratios) else float("inf")


def measure_attention(
    cases: list[Case], effort: Effort, rate: float, quick: bool, told: Callable[[str], None]
) -> list[Attention]:
    """Check, then time every case; `rate`: of matrix products; `told` is called with the next case."""
    found: list[Attention] = []
    for case in cases:
        direction = "forward + backward" if case.backward else "forward"
        told(f"{case.method.name}, {case.shape.length:,} tokens, {direction}")
        wrong = disagreeing(case.method, case.shape, case.backward, QUICK if quick else {})
        found.append(_measured(case, effort, rate, wrong))
    return found


def _measured(case: Case, effort: Effort, rate: float, wrong: dict[str, str]) -> Attention:
    contenders, absent = roster(case.method, case.shape, wrong)
    calls: dict[str, Call] = {}
    for contender in [dense(), *contenders]:
        try:
            call = contender.call(case.shape, case.backward)
            warm_up(call)
            calls[contender.name] = call
        except (RuntimeError, MemoryError, NotImplementedError) as error:
            if contender.name == DENSE:
                raise
            absent.append(Absent(contender.name, f"fails: {first_line(error)}"))
    times = interleaved(calls, effort, clock_of(case.shape.device))
    sparsity = achieved_sparsity(case.method, case.shape)
    return Attention(
        method=case.method.spec,
        name=case.method.name,
        shape=asdict(case.shape),
        backward=case.backward,
        achieved_sparsity=sparsity,
        arithmetic=arithmetic(case, 1 - sparsity),
        limit_seconds=products(case, 1 - sparsity) * case.shape.products / rate,
        timed=compared(times, DENSE),
        absent=absent,
    )


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
