"""Which kernel computes a call, and computing it with that one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crisp_attention.kernels import measured, reference
from crisp_attention.kernels.blocks import choose_blocks, may_choose
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import note
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.heads import PerHead

AUTO, REFERENCE = "auto", "reference"


def _for_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# Dynamo, which strict exports run, takes it for False otherwise. This is torch.compiler.assume_constant_result (read
# in 2.13) without its import of all of dynamo.
vars(_for_onnx)["_dynamo_marked_constant"] = True


def recorder() -> str | None:
    """What is recording this call into a program that will run elsewhere, None if nothing is.

    torch.compile is not among them: its programs run in this process.
    """
    if not torch.compiler.is_exporting() and not torch.jit.is_tracing():
        return None
    if _for_onnx():
        return "ONNX"
    return "torch.jit.trace" if torch.jit.is_tracing() else "torch.export"


@dataclass(frozen=True)
class Part:
    """Some heads of a call, or all of them (None), and the kernel that computes them."""

    call: Call
    kernel: str
    heads: list[int] | None = None


def attention(
    call: Call,
    backend: str = AUTO,
    *,
    observe: Callable[[reference.Observation], None] | None = None,
    weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, L, Dv) of a call and, if asked for, its weights (B, H, L, S).

    Only the reference has scores and weights: who observes or asks for them gets it, whatever the
    backend. Raises ValueError for a backend that does not exist or cannot do the call.
    """
    check_backend(backend)
    if observe is None and not weights:
        parts = plan(_in_one_dtype(call), backend)
        if parts[0].kernel != REFERENCE or len(parts) > 1:
            return _compute(parts).to(call.value.dtype), None
    if observe is None:
        note(REFERENCE)
    output, found = reference.attention(call, observe=observe)
    return output, found if weights else None


def check_backend(backend: str) -> None:
    """Raise ValueError unless there is such a backend."""
    if backend not in (known := [AUTO, *KERNELS, REFERENCE]):
        raise ValueError(f"backend must be one of {', '.join(known)}, got {backend!r}")


def plan(call: Call, backend: str = AUTO) -> list[Part]:
    """The kernel for a call; where heads have methods of their own, one for each group of them.

    A program that torch records gets the reference, made of torch's own operations, unless a kernel was asked for.
    Raises ValueError if the backend asked for lacks something.
    """
    method, call = call.method, with_blocks(call, backend)
    if not isinstance(method, PerHead) or method.uses_seed or _first(call, backend) is not None:
        return [Part(call, _pick(call, backend))]
    groups = [(with_blocks(call.of(heads, each), backend), heads) for each, heads in method.groups().items()]
    parts = [Part(part, _pick(part, backend), heads) for part, heads in groups]
    if all(part.kernel == REFERENCE for part in parts):
        return [Part(call, REFERENCE)]  # which shares the scores among the groups
    return parts


def with_blocks(call: Call, backend: str = AUTO) -> Call:
    """The call with the blocks that its layout chooses, if it does: once, for whatever computes it.

    Not in a program that is recorded for all lengths, which the reference computes pair by pair.
    """
    recorded = recorder() is not None and backend in (AUTO, REFERENCE)
    if recorded or isinstance(call.method, PerHead) or not may_choose(call.method.layout):
        return call
    with reference.exactly(call.query.device):
        return replace(call, blocks=choose_blocks(call.rows, call.method.layout))


def lacks(kernel: str, call: Call) -> str | None:
    """What a kernel cannot do of a call, None if nothing. The reference can do everything."""
    if kernel == REFERENCE:
        return None
    if call.blocks is None:
        call = with_blocks(call, kernel)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "forward-mode gradients and the transforms of torch.func"
    if call.query.dtype == torch.float64:
        return "float64"
    if recorder() == "ONNX":
        return "a translation to ONNX"
    return KERNELS[kernel].lacks(call)


def _first(call: Call, backend: str) -> str | None:
    """The best kernel that lacks nothing, among those that the backend allows; None if each lacks something."""
    if backend != AUTO:
        return backend if lacks(backend, call) is None else None
    if recorder() is not None:
        return None
    for row in measured.FASTEST:
        if row.kernel in KERNELS and row.covers(call) and lacks(row.kernel, call) is None:
            return row.kernel
    return None


def _pick(call: Call, backend: str) -> str:
    if (found := _first(call, backend)) is not None:
        return found
    if backend == AUTO:
        return REFERENCE
    raise ValueError(
        f"backend {backend!r} cannot compute this call ({call.method.name}, {call.query.dtype}, on "
        f"{call.query.device.type}): it lacks {lacks(backend, call)}; backend 'auto' takes a kernel that can"
    )


def _compute(parts: list[Part]) -> Tensor:
    outputs = [_run(part) for part in parts]
    if len(parts) == 1:
        return outputs[0]
    grouped = [head for part in parts for head in part.heads or ()]
    order = sorted(range(len(grouped)), key=grouped.__getitem__)
    return torch.cat(outputs, dim=1)[:, order]


def _run(part: Part) -> Tensor:
    note(part.kernel)
    if part.kernel == REFERENCE:
        return reference.attention(part.call)[0]
    with torch.autocast(part.call.query.device.type, enabled=False):
        return KERNELS[part.kernel].attention(part.call)


def _in_one_dtype(call: Call) -> Call:
    # under autocast, rotary embeddings leave queries and keys in float32 beside values in half precision
    query, key, value = call.query, call.key, call.value
    if query.dtype == key.dtype == value.dtype:
        return call
    widest = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    return replace(call, query=query.to(widest), key=key.to(widest), value=value.to(widest))
