"""Linear layers whose weights are blocks, as many in every row of blocks, on CPUs."""

import torch
from torch import Tensor

ROWS = 60  # of inputs for one item of work, at most
WORK = 1 << 16  # multiplications: for fewer, another thread takes longer to start than to compute them
BYTES = 1 << 18  # of blocks for one item of work, at most: for all its rows they stay in the second cache
FEW, FEW_BYTES = (
    4,
    1 << 14,
)  # rows for which blocks that are put together are used at once, in the first cache

# not by `custom_op`, whose handling of gradients takes longer than the product of a single row
torch.library.define(
    "crisp::block_linear",
    "(Tensor inputs, Tensor packed, Tensor? places, int of, Tensor index, Tensor? bias, bool gelu) -> Tensor",
)


def block_linear(
    inputs: Tensor,
    packed: Tensor,
    index: Tensor,
    bias: Tensor | None,
    gelu: bool,
    places: Tensor | None = None,
    of: int = 1,
) -> Tensor:
    """Rows (…, inputs) times the blocks of a weight, plus a bias, or the GELU of that, (…, outputs).

    All in float32, or in bfloat16, computed in float32 all the same.

    `packed` (R, K, B, B) are the K blocks of every row of blocks, each transposed (inputs, outputs), and `index` (R, K)
    int32 says which block of inputs each is for. With `places` (R, K, words, B) `packed` (R, K, lines, B) are weights
    of groups of `of` inputs, as `kernels.packing` packs them. Without gradients.
    """
    if inputs.dtype == torch.bfloat16:
        wide = None if bias is None else bias.float()
        return block_linear(inputs.float(), packed.float(), index, wide, gelu, places, of).to(inputs.dtype)
    found: Tensor = torch.ops.crisp.block_linear.default(inputs, packed, places, of, index, bias, gelu)
    return found


def _compute(
    inputs: Tensor,
    packed: Tensor,
    places: Tensor | None,
    of: int,
    index: Tensor,
    bias: Tensor | None,
    gelu: bool,
) -> Tensor:
    from crisp_attention.kernels.cpu.block_linear.job import BLOCK_LINEAR
    from crisp_attention.kernels.cpu.threads import Job, loaded

    out = _empty(inputs, packed)
    if not (outputs := out.numel()):
        return out
    blocks, kept, lines, size = packed.shape
    rows = outputs // (blocks * size)
    job = Job(BLOCK_LINEAR)
    for name, values in (("inputs", inputs), ("packed", packed), ("index", index), ("out", out)):
        job.flat(name, values)
    if bias is not None:
        job.flat("bias", bias)
    work = rows * blocks * kept * size * size
    stretches, threads = -(-rows // ROWS), min(torch.get_num_threads(), 1 + work // WORK)
    most = BYTES if places is None or rows > FEW else FEW_BYTES
    group = max(1, min(most // (4 * kept * size * size), stretches * blocks // (4 * threads), blocks))
    threads = min(threads, stretches * -(-blocks // group))
    if places is not None:
        job.flat("places", places)
        whole = group * kept * size * size
        job.flat("scratch", torch.empty(threads, whole, dtype=torch.float32, device="cpu"))
        job.set(words=places.shape[2], scratch_size=whole)
    job.set(
        width=inputs.shape[-1],
        rows=rows,
        blocks=blocks,
        kept=kept,
        size=size,
        lines=lines,
        of=of,
        stretch=ROWS,
        group=group,
        gelu=gelu,
    )
    job.start(loaded("block_linear.forward", "forward"), threads)
    return out


@torch.library.register_fake("crisp::block_linear")
def _empty(inputs: Tensor, packed: Tensor, *_: object) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], packed.shape[0] * packed.shape[3])


torch.library.impl("crisp::block_linear", "cpu", _compute)
