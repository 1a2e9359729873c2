"""Our own contenders, and the dense attention that everything is measured by."""

import inspect

from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.bench.contender import Contender
from crisp_attention.functional import attention
from crisp_attention.methods.method import Method

DENSE, CRISP, REFERENCE = "dense SDPA", "crisp", "crisp reference"
CHOOSES = "backend" in inspect.signature(attention).parameters


def dense() -> Contender:
    """torch's scaled_dot_product_attention."""
    return Contender(DENSE, lambda query, key, value: scaled_dot_product_attention(query, key, value))


def crisp(method: Method, backend: str = "auto") -> Contender:
    """`crisp.attention`, with the kernel that it chooses or with the reference."""
    chosen = {"backend": backend} if CHOOSES else {}
    whole = backend == "reference" or not CHOOSES
    return Contender(
        REFERENCE if backend == "reference" else CRISP,
        lambda query, key, value: attention(query, key, value, method, **chosen),  # type: ignore[arg-type]
        matrices=8 if whole else 0,
    )
