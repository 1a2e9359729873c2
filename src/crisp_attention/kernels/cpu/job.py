"""What a call of the row kernels hands to its threads."""

from crisp_attention.kernels.cpu.native import job_type

STRIDED = ("query", "key", "value", "out", "grad", "valid", "bias", "query_grad")
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
    "chunks",
    "block_size",
    "most_blocks",
)
OTHERS = (
    "counts",
    "hints",
    "blocks",
    "block_counts",
    "lengths",
    "threshold",
    "tie",
    "norm",
    "key_grad",
    "value_grad",
    "scratch",
    "scratch_size",
)
RULE = ("rule", "n", "m", "causal", "seed")

# Every strided tensor has the address of its first number and its strides over batch, heads and rows; its rows
# are contiguous. Masks repeat by strides of 0; their address is 0 where there is none.
JOB = job_type(
    *(name + part for name in STRIDED for part in ("", "_batch", "_head", "_row")),
    *SIZES,
    *OTHERS,
    *RULE,
    floats=("scale", "level", "dropout"),
)
