"""Ten thousand random calls against float64: the reference for all, for the smallest the oracle's loops as well."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import PerHead
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import recording
from crisp_attention.kernels.registry import FASTEST, KERNELS
from crisp_attention.methods.method import Method
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.rules import Threshold, TopKTopP, TopP
from tests import oracle
from tests.kernels.drawn import drawn

SEED = int(os.environ.get("CRISP_FUZZ_SEED", "16"))
CALLS = 10_000
EVERY_GRADIENT = 4  # of so many calls one is differentiated too
FEW = 600  # scores, up to which the oracle is quick
MOST_SHOWN = 20
DOUBT = 1e-6  # relative: what is as close to a bound is decided by rounding
ROUNDING = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_random_calls_agree_with_float64() -> None:
    counts: Counter[str] = Counter()
    failures = []
    for number in range(CALLS):
        call = drawn(SEED, number)
        try:
            counts.update(check(call, gradients=number % EVERY_GRADIENT == 0))
        except Exception as error:  # whatever it is, the other calls are still to be tried
            failures.append(f"drawn({SEED}, {number}), {described(call)}: {type(error).__name__}: {error}")
    print(f"seed {SEED}, {CALLS:,} calls, by kernel: {dict(counts)}")
    shown = "\n".join(failures[:MOST_SHOWN])
    assert not failures, f"{len(failures)} of {CALLS:,} calls with CRISP_FUZZ_SEED={SEED}:\n{shown}"
    ours = {row.kernel for row in FASTEST if row.device == "cpu" and KERNELS[row.kernel].absent is None}
    assert all(counts[kernel] >= CALLS / 100 for kernel in ours | {dispatch.REFERENCE}), counts


def test_a_call_is_the_same_again() -> None:
    first, second, other = (drawn(*given) for given in ((3, 5), (3, 5), (3, 6)))
    assert first.query.equal(second.query)
    assert (first.method, first.scale, first.causal) == (second.method, second.scale, second.causal)
    assert first.query.shape != other.query.shape or not first.query.equal(other.query)


@pytest.mark.parametrize("wrong", [0.999, 1.001])
def test_a_kernel_that_computes_something_else_is_found(monkeypatch, wrong) -> None:
    right = dispatch.attention

    def attention(call: Call, backend: str = dispatch.AUTO, **more):
        output, weights = right(call, backend, **more)
        return (output if backend == dispatch.REFERENCE else output * wrong), weights

    call = next(call for number in range(50) if (call := drawn(1, number)).query.dtype == torch.float32)
    check(call, gradients=True)
    monkeypatch.setattr(dispatch, "attention", attention)
    with pytest.raises(AssertionError, match="the output differs by"):
        check(call, gradients=False)


def check(call: Call, *, gradients: bool) -> set[str]:
    """The kernels that dispatch takes. Raises AssertionError unless they agree with float64."""
    sure = defined(call)
    with recording() as used:
        ours, *slopes = results(call, call.query.dtype, dispatch.AUTO, sure, gradients)
    right, *meant = results(call, torch.float64, dispatch.REFERENCE, sure, gradients)
    if not exact(call) and not close(ours, right, call):
        sure &= decided(call)
        ours, *slopes = results(call, call.query.dtype, dispatch.AUTO, sure, gradients)
        right, *meant = results(call, torch.float64, dispatch.REFERENCE, sure, gradients)
    compare("the output", ours, right, call)
    if gradients:
        _, *theirs = results(call, call.query.dtype, dispatch.REFERENCE, sure, gradients)
        for name, own, other, rounded in zip(leaves(call), slopes, meant, theirs, strict=True):
            # torch's own attention rounds its weights' gradients to half precision
            more = 2.0 if used == {"sdpa"} else 0.0
            if name in call.parameters:  # a sum over the rows of all examples, whose errors are a random walk
                more = max(more, math.sqrt(call.query.shape[0] * call.query.shape[2]))
            more *= distance(own, other, call)[1]
            compare(
                f"the gradient of {name}", own, other, call, max(more, 3 * distance(rounded, other, call)[0])
            )
    if (said := of_oracle(call)) is not None:
        compare("the reference", right, said * sure, replace(call, query=call.query.double()))
    return used


def compare(what: str, ours: Tensor, right: Tensor, call: Call, more: float = 0.0) -> None:
    """Raise AssertionError unless all numbers are right but for rounding, or are not away by `more`."""
    away, allowed = distance(ours, right, call)
    allowed = max(allowed, more)
    assert away <= allowed, f"{what} differs by {away:.2e}; at most {allowed:.1e} is allowed"


def close(ours: Tensor, right: Tensor, call: Call) -> bool:
    """Whether all numbers are right but for rounding."""
    away, allowed = distance(ours, right, call)
    return away <= allowed


def distance(ours: Tensor, right: Tensor, call: Call) -> tuple[float, float]:
    """The largest difference, and how large rounding can make it."""
    query, key, value = (float(each.abs().max()) for each in (call.query, call.key, call.value))
    scores = query * key * call.query.shape[-1] * abs(call.scale)
    rounding = ROUNDING[call.query.dtype] + torch.finfo(torch.float32).eps * min(scores, 1e4)
    away = float((ours.double() - right.double()).abs().nan_to_num(torch.inf).max())
    return away, rounding * max(1.0, float(right.abs().max()), key * value / 4)


def results(call: Call, dtype: torch.dtype, backend: str, sure: Tensor, gradients: bool) -> list[Tensor]:
    """The output where it is defined and, if asked for, the gradients, of leaves with the call's strides."""
    held = {
        name: tensor.detach().to(dtype).requires_grad_(gradients) for name, tensor in leaves(call).items()
    }
    own = {name: held[name] for name in ("query", "key", "value", "bias", "sinks") if name in held}
    learned = {name: tensor.detach().requires_grad_(gradients) for name, tensor in call.parameters.items()}
    output = dispatch.attention(replace(call, **own, parameters=learned), backend)[0]
    output = torch.where(sure, output, 0.0)
    if not gradients:
        return [output]
    along = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    slopes = torch.autograd.grad(
        output,
        [*own.values(), *learned.values()],
        along.to(call.query.dtype).to(output.dtype),
        allow_unused=True,
    )
    return [output.detach(), *(torch.zeros(()) if each is None else each for each in slopes)]


def leaves(call: Call) -> dict[str, Tensor]:
    """What a gradient can be asked of, by name."""
    names = ("query", "key", "value", "bias", "sinks")
    found = {name: each for name in names if (each := getattr(call, name)) is not None}
    return found | dict(call.parameters)


def defined(call: Call) -> Tensor:
    """The rows that mean something, (B, H, L, 1): padded queries get what a kernel likes under blocks."""
    batch, heads, queries, _ = call.query.shape
    if not blocked(call):
        return torch.ones(batch, heads, queries, 1, dtype=torch.bool)
    return valid_queries(call.rows.valid.expand(batch, heads, queries, -1)).unsqueeze(-1)


def exact(call: Call) -> bool:
    """Whether nothing that decides what is kept is rounded: scores are not, masses and means of blocks may be."""
    return _exact_scores(call) and moved(call.method, 1 - DOUBT) == call.method


def _exact_scores(call: Call) -> bool:
    return (8 * call.query).equal((8 * call.query).round()) and not blocked(call)


def blocked(call: Call) -> bool:
    """Whether any head ranks blocks."""
    return any(each.block_size for each in getattr(call.method, "methods", (call.method,)))


def decided(call: Call) -> Tensor:
    """The rows (B, H, L, 1) that do not depend on the last bits of scores, masses and thresholds."""
    generator = torch.Generator().manual_seed(1)

    def output(away: float) -> Tensor:
        states = {name: getattr(call, name).double() for name in ("query", "key", "value")}
        if not _exact_scores(call):
            states = {
                name: each * (1 + away * torch.randn(each.shape, generator=generator).double())
                for name, each in states.items()
            }
        moving = replace(call, **states, method=moved(call.method, 1 + away))
        return dispatch.attention(moving, dispatch.REFERENCE)[0]

    still = output(0.0)
    nearby = torch.stack([output(away) for away in (-DOUBT, DOUBT) * 4])
    return ((nearby - still).abs() <= 100 * DOUBT * (1 + still.abs())).all(dim=0).all(dim=-1, keepdim=True)


def moved(method, factor: float):
    """The method with its bounds on masses and weights moved by a factor."""
    if isinstance(method, PerHead):
        return PerHead(tuple(moved(each, factor) for each in method.methods))
    rule = method.rule
    if isinstance(rule, TopP | TopKTopP) and rule.mass < 1:
        return replace(method, rule=replace(rule, mass=rule.mass * factor))
    if isinstance(rule, Threshold) and 0 < rule.epsilon < 1:
        return replace(method, rule=replace(rule, epsilon=rule.epsilon * factor))
    return method


def of_oracle(call: Call) -> Tensor | None:
    """The oracle's output, None where it has no meaning for the method or would take long."""
    method, (batch, heads, queries, _) = call.method, call.query.shape
    scores = batch * heads * queries * call.key.shape[2]
    if not isinstance(method, Method) or method.uses_seed or scores > FEW:
        return None
    if any(isinstance(each, str) for each in (method.rule.temperature, getattr(method.rule, "alpha", 1))):
        return None
    if call.scale <= 0 and (method.has_branch or method.layout.name == "lsh"):
        return None  # for which the oracle ranks and hashes as if the scale were positive
    valid = call.rows.valid.expand(batch, heads, queries, -1)
    return oracle.attention(
        call.query, call.key, call.value, method, scale=call.scale, valid=valid, bias=call.bias,
        softcap=call.softcap, sinks=call.sinks, parameters=call.parameters,
    )[0]  # fmt: skip


def described(call: Call) -> str:
    """The call in a line."""
    shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in leaves(call).items())
    flags = [name for name in ("valid", "bias", "softcap", "sinks") if getattr(call, name) is not None]
    return f"{call.method} in {call.query.dtype}, {shapes}, {'causal, ' * call.causal}{', '.join(flags)}"
