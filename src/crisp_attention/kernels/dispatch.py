"""Which kernel computes a call, and computing it with that one."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crisp_attention.kernels import preference, reference, registry, replay
from crisp_attention.kernels.around import tempered, together, with_branches
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.masks import recognised
from crisp_attention.kernels.recording import note
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import Method

AUTO, REFERENCE = "auto", preference.REFERENCE


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

    Only the reference has scores and weights: calls that observe or ask for them go to it, whatever the
    backend. Raises ValueError for a backend that does not exist or cannot do the call.
    """
    check_backend(backend)
    if weights and call.method.has_branch:
        raise ValueError(
            f"method {call.method} has a branch, so its output is not a weighted sum of values: there are no attention "
            f"weights to return (output_attentions=True)"
        )
    kind = _kind(call, backend) if observe is None and not weights else None
    if (again := replay.find(kind)) is not None:
        note(replay.REPLAYED)
        return again.attention(call.query, call.key, call.value), None
    given = tempered(call)
    compiled = backend != REFERENCE and recorder() is None and not transformed()
    if observe is None and not weights:
        parts = plan(_in_one_dtype(given if transformed() else recognised(given)), backend)
        blocks = parts[0].call.blocks
        if parts[0].kernel != REFERENCE or len(parts) > 1:
            with replay.remembering(kind, call, parts[0].kernel):
                output = _compute(parts)
            if not _with_branch(parts[0]):
                output = with_branches(output, call, blocks, compiled=compiled)
            return output.to(call.value.dtype), None
        note(REFERENCE)
    else:
        blocks = _with_blocks(given, REFERENCE).blocks
        if observe is None:
            note(REFERENCE)
    output, found = reference.attention(replace(given, blocks=blocks), observe=observe)
    return with_branches(output, call, blocks, compiled=compiled), found if weights else None


def _kind(call: Call, backend: str) -> Hashable | None:
    """What calls have in common that need not be planned one by one; None for a call that must be."""
    if torch.compiler.is_compiling() or transformed():
        return None
    return replay.kind_of(call, backend)


def forget() -> None:
    """Choose again for calls like earlier ones, by what is measured on this machine by then."""
    preference.forget()
    replay.forget()


def check_backend(backend: str) -> None:
    """Raise ValueError unless there is such a backend."""
    if backend not in (known := [AUTO, *KERNELS, REFERENCE]):
        raise ValueError(f"backend must be one of {', '.join(known)}, got {backend!r}")


def plan(call: Call, backend: str = AUTO) -> list[Part]:
    """The kernel for a call; where heads have methods of their own, one for each group of them.

    A program that torch records gets the reference, made of torch's own operations, unless a kernel was asked for.
    Raises ValueError if the backend asked for lacks something.
    """
    method, call = call.method, _with_blocks(call, backend)
    if not isinstance(method, PerHead) or method.uses_seed or _first(call, backend) is not None:
        return [Part(call, _pick(call, backend))]
    groups = [(_with_blocks(call.of(heads, each), backend), heads) for each, heads in method.groups().items()]
    parts = [Part(part, _pick(part, backend), heads) for part, heads in groups]
    if all(part.kernel == REFERENCE for part in parts):
        return [Part(call, REFERENCE)]  # which shares the scores among the groups
    return parts


def lacks(kernel: str, call: Call) -> str | None:
    """What a kernel cannot do of a call, None if nothing. The reference can do everything."""
    if kernel == REFERENCE:
        return None
    if call.blocks is None and call.dense is None:
        call = _with_blocks(call, kernel)
    if transformed():
        return "forward-mode gradients and torch.func transforms"
    if call.query.dtype == torch.float64:
        return "float64"
    if recorder() == "ONNX":
        return "ONNX export"
    if call.dense is not None:
        return "tokens that stay dense"
    return KERNELS[kernel].lacks(call)


def transformed() -> bool:
    """Whether forward-mode gradients are taken, or torch.func transforms are in force."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _with_blocks(call: Call, backend: str) -> Call:
    # a program that is recorded for all lengths is computed by the reference, pair by pair, and so are tokens beside
    # dense ones
    pairs = call.dense is not None or (recorder() is not None and backend in (AUTO, REFERENCE))
    return call if pairs else with_blocks(call)


def _first(call: Call, backend: str) -> str | None:
    """The best kernel that lacks nothing, among those that the backend allows; None if each lacks something."""
    if backend != AUTO:
        return backend if lacks(backend, call) is None else None
    if recorder() is not None:
        return None
    for row in registry.covering(call):
        if (row.kernel == REFERENCE or row.kernel in KERNELS) and lacks(row.kernel, call) is None:
            return row.kernel
    return None


def _pick(call: Call, backend: str) -> str:
    if (found := _first(call, backend)) is not None:
        return found
    if backend == AUTO:
        return REFERENCE
    raise ValueError(
        f"backend {backend!r} cannot compute this call ({call.method.name}, {call.query.dtype}, on "
        f"{call.query.device.type}): it lacks {lacks(backend, call)}; use backend 'auto' or 'reference'"
    )


def _with_branch(part: Part) -> bool:
    """Whether the kernel computes the branch of its method too; not for a group of heads."""
    return part.heads is None and part.kernel != REFERENCE and KERNELS[part.kernel].computes_branch(part.call)


def _compute(parts: list[Part]) -> Tensor:
    outputs = [_run(part) for part in parts]
    if len(parts) == 1:
        return outputs[0]
    return together(outputs, [part.heads or [] for part in parts])


def _run(part: Part) -> Tensor:
    note(part.kernel)
    call = part.call
    if part.kernel == REFERENCE:
        return reference.attention(call)[0]
    if part.heads is not None and isinstance(call.method, Method):
        call = replace(call, method=replace(call.method, branch=None))  # which comes after all groups
    if not torch.is_autocast_enabled(call.query.device.type):
        return KERNELS[part.kernel].attention(call)
    with torch.autocast(call.query.device.type, enabled=False):
        return KERNELS[part.kernel].attention(call)


def _in_one_dtype(call: Call) -> Call:
    # under autocast, rotary embeddings leave queries and keys in float32 next to values in half precision
    query, key, value = call.query, call.key, call.value
    if query.dtype == key.dtype == value.dtype:
        return call
    widest = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    return replace(call, query=query.to(widest), key=key.to(widest), value=value.to(widest))
