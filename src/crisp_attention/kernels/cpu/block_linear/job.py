"""What a linear layer of blocks hands to its threads."""

from crisp_attention.kernels.cpu.job import VERSION
from crisp_attention.kernels.cpu.native import job_type

# all addresses are of contiguous tensors; `bias` is 0 where there is none, `of` 1 where blocks are whole
BLOCK_LINEAR = job_type(
    "inputs",
    "packed",
    "places",
    "index",
    "bias",
    "out",
    "width",
    "rows",
    "blocks",
    "kept",
    "size",
    "lines",
    "words",
    "of",
    "scratch",
    "scratch_size",
    "stretch",
    "group",
    "gelu",
    VERSION,
)
