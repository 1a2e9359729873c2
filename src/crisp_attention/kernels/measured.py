"""Which kernel `backend="auto"` takes first, and whether that was measured. `crisp bench` measures."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from crisp_attention.kernels.call import Call

ANY = 2**63 - 1


@dataclass(frozen=True)
class Fastest:
    """For calls like these the kernel comes first, if it can do them. Empty means any; ranges include both ends.

    `measured` says on what it was found to be the fastest; None: nowhere, it is expected to be.
    """

    kernel: str
    device: str
    methods: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    queries: tuple[int, int] = (1, ANY)
    keys: tuple[int, int] = (1, ANY)
    measured: str | None = None

    def covers(self, call: Call) -> bool:
        """Whether the call is one of those."""
        return (
            self.device == call.query.device.type
            and (not self.methods or call.method.name in self.methods)
            and (not self.dtypes or call.query.dtype in self.dtypes)
            and self.queries[0] <= call.query.shape[2] <= self.queries[1]
            and self.keys[0] <= call.key.shape[2] <= self.keys[1]
        )

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
