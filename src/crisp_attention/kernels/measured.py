"""Where which kernel was measured to be the fastest: what `backend="auto"` goes by. `crisp bench` measures."""

from dataclasses import dataclass

import torch

from crisp_attention.kernels.call import Call

ANY = 2**63 - 1


@dataclass(frozen=True)
class Fastest:
    """For calls like these the kernel is the fastest, if it can do them. Empty means any; ranges include both ends."""

    kernel: str
    device: str
    methods: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    queries: tuple[int, int] = (1, ANY)
    keys: tuple[int, int] = (1, ANY)

    def covers(self, call: Call) -> bool:
        """Whether the call is one of those."""
        return (
            self.device == call.query.device.type
            and (not self.methods or call.method.name in self.methods)
            and (not self.dtypes or call.query.dtype in self.dtypes)
            and self.queries[0] <= call.query.shape[2] <= self.queries[1]
            and self.keys[0] <= call.key.shape[2] <= self.keys[1]
        )


# the first that covers a call, and whose kernel lacks nothing of it, is taken
FASTEST = (
    Fastest("cpu", device="cpu"),
    Fastest("flex", device="cuda"),
    Fastest("triton", device="cuda"),
)
