"""What a call of the row kernels hands to its threads."""

from hashlib import sha256
from pathlib import Path

from crisp_attention.kernels.cpu.native import job_type

STRIDED = ("query", "key", "value", "out", "grad", "valid", "bias", "query_grad", "bias_grad")
SIZES = (
    "batch",
    "heads",
    "groups",
    "queries",
    "keys",
    "width",
    "value_width",
    "tile",
    "whole",
    "unpacked",
    "full",
    "chunk_keys",
    "chunks",
    "block_size",
    "most_blocks",
    "listed_blocks",
    "blocks_of_keys",
    "sink_blocks",
    "local_blocks",
    "words",
    "first_query",
    "band",
    "reach",
    "dilation",
    "local",
    "global_tokens",
    "last_tokens",
    "traits",
    "columns_of_traits",
    "drawn",
    "drawn_blocks",
    "drawn_size",
)
OTHERS = (
    "counts",
    "hints",
    "sinks",
    "sinks_grad",
    "blocks",
    "block_counts",
    "shares",
    "chosen",
    "spans",
    "query_traits",
    "key_traits",
    "head_seeds",
    "own",
    "own_grad",
    "threshold",
    "tie",
    "norm",
    "key_grad",
    "value_grad",
    "scratch",
    "scratch_size",
)
RULE = ("rule", "n", "m", "causal", "seed")
# numba's cache on disk notices changes of the file it compiles, not of those that this one imports from:
# so the type of a job, which is part of the cache's keys, has a name that changes with any of them
SOURCES = sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))))
VERSION = f"sources_{SOURCES.hexdigest()[:16]}"


def strided(*names: str) -> list[str]:
    """Fields for tensors (B, H, L, ·): the address of the first number and strides over batch, heads and rows.

    Rows are contiguous. Masks repeat by strides of 0; their address is 0 where there is none.
    """
    return [name + part for name in names for part in ("", "_batch", "_head", "_row")]


JOB = job_type(
    *strided(*STRIDED),
    *SIZES,
    *OTHERS,
    *RULE,
    VERSION,
    floats=("scale", "softcap", "level", "mass", "dropout", "distance"),
)
