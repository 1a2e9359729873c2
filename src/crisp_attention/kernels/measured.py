"""Which kernel `backend="auto"` takes first, and whether that was measured. `crisp bench` measures."""

from collections.abc import Iterator
from dataclasses import dataclass

from crisp_attention.kernels.call import Call


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
            return f"expected to be the fastest on {self.device}, which was not measured"
        return f"the fastest on {self.measured}"


# the first that covers a call, and whose kernel lacks nothing of it, is taken
FASTEST = (
    Fastest("cpu", device="cpu", measured="2 cores of an AMD EPYC (docs/performance.md)"),
    Fastest("flex", device="cuda"),
    Fastest("triton", device="cuda"),
)


def covering(call: Call) -> Iterator[Fastest]:
    """The rows that cover a call, in their order."""
    return (row for row in FASTEST if row.covers(call))
