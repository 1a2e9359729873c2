"""Our own contenders, and the dense attention that everything is measured by."""

from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.bench.contender import Contender
from crisp_attention.functional import attention
from crisp_attention.methods.method import Method

DENSE, CRISP, REFERENCE = "dense SDPA", "crisp", "crisp reference"


def dense() -> Contender:
    """torch's scaled_dot_product_attention."""
    return Contender(DENSE, lambda query, key, value: scaled_dot_product_attention(query, key, value))


def crisp(method: Method, backend: str = "auto") -> Contender:
    """`crisp.attention`, with the kernel that it chooses or with the reference."""
    return Contender(
        REFERENCE if backend == "reference" else CRISP,
        lambda query, key, value: attention(query, key, value, method, backend=backend),
        matrices=8 if backend == "reference" else 0,
    )
