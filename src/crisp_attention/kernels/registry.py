"""All kernels but the reference, imported when a call first considers them, and which `backend="auto"` takes first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Protocol

from torch import Tensor

from crisp_attention.kernels import preference
from crisp_attention.kernels.call import Call
from crisp_attention.methods.branches import Attended, Branch


class KernelModule(Protocol):
    """What the module of a kernel has; it imports its compiler and compiles when it computes, not before."""

    def lacks(self, call: Call, /) -> str | None:
        """What it cannot do of this call, to finish "the kernel lacks …"; None if nothing.

        Quick, and without a look at the values of tensors: `explain` and torch.compile have none.
        """

    def attention(self, call: Call, /) -> Tensor:
        """The output (B, H, L, Dv) in the query's dtype, differentiable."""


class BranchModule(Protocol):
    """What the module of a kernel for branches has."""

    def lacks(self, branch: Branch, call: Attended, /) -> str | None:
        """What it cannot do of this branch of a call, None if nothing."""

    def attention(self, branch: Branch, call: Attended, output: Tensor, /) -> Tensor:
        """What `Branch.attention` gives, differentiable once."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: where its module is, and a library that it needs and that is not installed."""

    load: Callable[[], KernelModule]
    absent: str | None = None

    def lacks(self, call: Call) -> str | None:
        """What the kernel cannot do of this call, None if nothing."""
        if self.absent is not None:
            return f"{self.absent}, which is not installed"
        return self.load().lacks(call)

    def computes_branch(self, call: Call) -> bool:
        """Whether the output is that with the method's branch: a kernel may compute both in one pass."""
        own = getattr(self.load(), "computes_branch", None)
        return own is not None and own(call)

    def attention(self, call: Call) -> Tensor:
        """The output, as `KernelModule` says."""
        return self.load().attention(call)


def _missing(library: str) -> str | None:
    return library if find_spec(library) is None else None


def _sdpa() -> KernelModule:
    from crisp_attention.kernels import sdpa

    return sdpa


def _cpu() -> KernelModule:
    from crisp_attention.kernels import cpu

    return cpu


def _flex() -> KernelModule:
    from crisp_attention.kernels import flex

    return flex


def _triton() -> KernelModule:
    from crisp_attention.kernels import triton_rows

    return triton_rows


def _triton_blocks() -> KernelModule:
    from crisp_attention.kernels import triton_blocks

    return triton_blocks


# imported by statements, and not by importlib, because torch.compile follows only those
KERNELS: dict[str, Kernel] = {
    "cpu": Kernel(_cpu, absent=_missing("numba")),
    "flex": Kernel(_flex),
    "triton": Kernel(_triton, absent=_missing("triton")),
    "triton_blocks": Kernel(_triton_blocks, absent=_missing("triton")),
    "sdpa": Kernel(_sdpa),
}


def branch_kernel(branch: Branch, call: Attended) -> BranchModule | None:
    """What computes a branch of this call faster than by its definition, beside any kernel; None if nothing does."""
    if KERNELS["cpu"].absent is None:
        from crisp_attention.kernels.cpu import linear

        if linear.lacks(branch, call) is None:
            return linear
    return None


@dataclass(frozen=True)
class Fastest:
    """On this device the kernel comes first, if it can do a call.

    `measured` says on what it was found to be the fastest; None: nowhere, it is expected to be.
    """

    kernel: str
    device: str
    measured: str | None = None

    def covers(self, call: Call) -> bool:
        """Whether the call is one of those."""
        return self.device == call.query.device.type

    @property
    def why(self) -> str:
        """Why the kernel comes first."""
        if self.measured is None:
            return f"expected to be the fastest on {self.device}, but not measured"
        return f"the fastest on {self.measured}"


# the first that covers a call, and whose kernel lacks nothing of it, is taken, where `preference` knows no better
FASTEST = (
    Fastest("sdpa", device="cpu"),
    Fastest("cpu", device="cpu", measured="2 cores of an AMD EPYC (docs/performance.md)"),
    Fastest("sdpa", device="cuda"),
    Fastest("triton_blocks", device="cuda", measured="an NVIDIA H200 (docs/performance.md)"),
    Fastest("flex", device="cuda"),
    Fastest("triton", device="cuda"),
)


def covering(call: Call) -> Iterator[Fastest]:
    """The rows that cover a call, in their order; what was measured on this machine for calls like it comes first."""
    shipped = (row for row in FASTEST if row.covers(call))
    if not (order := preference.order(call)):
        return shipped
    known = preference.table(call.query.device)
    assert known is not None
    measured = f"{known.machine}, measured by {preference.COMMAND}"
    own = (Fastest(kernel, call.query.device.type, measured) for kernel in order)
    return chain(own, (row for row in shipped if row.kernel not in order))
