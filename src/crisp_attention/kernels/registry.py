"""All kernels but the reference. The module of one is imported when a call first considers it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from crisp_attention.kernels.call import Call


class KernelModule(Protocol):
    """What the module of a kernel has; it imports its compiler and compiles when it computes, not before."""

    def lacks(self, call: Call, /) -> str | None:
        """What it cannot do of this call, to finish "the kernel lacks …"; None if nothing.

        Quick, and without a look at the values of tensors: `explain` and torch.compile have none.
        """

    def attention(self, call: Call, /) -> Tensor:
        """The output (B, H, L, Dv) in the query's dtype, differentiable."""


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

    def attention(self, call: Call) -> Tensor:
        """The output, as `KernelModule` says."""
        return self.load().attention(call)


def _missing(library: str) -> str | None:
    return library if find_spec(library) is None else None


def _cpu() -> KernelModule:
    from crisp_attention.kernels import cpu

    return cpu


def _flex() -> KernelModule:
    from crisp_attention.kernels import flex

    return flex


def _triton() -> KernelModule:
    from crisp_attention.kernels import triton_rows

    return triton_rows


# imported by statements, and not by importlib, because torch.compile follows only those
KERNELS: dict[str, Kernel] = {
    "cpu": Kernel(_cpu, absent=_missing("numba")),
    "flex": Kernel(_flex),
    "triton": Kernel(_triton, absent=_missing("triton")),
}
